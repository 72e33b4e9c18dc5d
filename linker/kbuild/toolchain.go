package kbuild

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"unlucky/host"
)

// Toolchain is a folder of LLVM programs under their plain names, which is
// what kbuild's LLVM=1 looks for on the PATH, and the compiler if it is another.
type Toolchain struct {
	Dir        string // folder that holds ld.lld, and clang, llvm-nm, ... where clang compiles
	Clang, LLD string // versions, "22.1.8"
	GCC        string // version, where gcc compiles
	cc         string // gcc's program
	randomizes bool
}

// Compiler is it with its version.
func (t Toolchain) Compiler() string {
	if t.GCC != "" {
		return "gcc " + t.GCC
	}
	return "clang " + t.Clang
}

// makeArgs tell make which compiler and linker to take.
func (t Toolchain) makeArgs() []string {
	if t.cc == "" {
		return []string{"LLVM=1"}
	}
	args := []string{"CC=" + t.cc, "LD=ld.lld"}
	// binutils of the kernel's architecture, where that is another than this machine's.
	if prefix, _, _ := strings.Cut(filepath.Base(t.cc), "gcc"); prefix != "" {
		args = append(args, "CROSS_COMPILE="+prefix)
	}
	return args
}

// Randomizes tells whether lld has --randomize-section-padding (LLVM 20 and later).
func (t Toolchain) Randomizes() bool { return t.randomizes }

// llvmTools are the programs that kbuild calls with LLVM=1.
var llvmTools = []string{"clang", "ld.lld", "llvm-ar", "llvm-nm", "llvm-objcopy", "llvm-objdump", "llvm-readelf", "llvm-strip"}

var version = regexp.MustCompile(`\d+\.\d+(\.\d+)?`)

// leastGCC is the oldest that is known to compile kernels whose sections can be moved.
const leastGCC = 12

// FindToolchain returns the newest complete LLVM: clang-NN on the PATH, where
// distributions with several put it, or plain clang; for a kernel that gcc
// compiles, that and the newest lld.
func FindToolchain(ctx context.Context, compiler string) (Toolchain, error) {
	if compiler == "" {
		return findLLVM(ctx)
	}
	t, err := newestLLD(ctx)
	if err != nil {
		return t, err
	}
	out, err := host.Output(ctx, "", host.Environment(os.Getenv("PATH")), compiler, "-dumpfullversion")
	if errors.Is(err, exec.ErrNotFound) {
		return t, host.Hint(fmt.Errorf("no %s found on the PATH", compiler), "%s", host.Install(compiler))
	} else if err != nil {
		return t, err
	}
	t.cc, t.GCC = compiler, version.FindString(string(out))
	if major(t.GCC) < leastGCC {
		return t, host.Hint(fmt.Errorf("%s is gcc %s, and kernels take %d or later here", compiler, t.GCC, leastGCC), "kernel.compiler names another, such as gcc-%d", leastGCC)
	}
	return t, nil
}

// newestLLD is the newest lld on the PATH under its plain name, preferably one that
// has the flag.
func newestLLD(ctx context.Context) (best Toolchain, err error) {
	for _, dir := range programDirs("ld.lld") {
		t := Toolchain{Dir: dir}
		if _, err := exec.LookPath(t.Linker()); err != nil {
			continue // it has another name here, of which the linker's errors would begin
		}
		if err := t.inspectLinker(ctx, t.Linker()); err != nil {
			return t, err
		}
		if best.Dir == "" || newer(t, best) {
			best = t
		}
	}
	if best.Dir == "" {
		return best, host.Hint(errors.New("no ld.lld found on the PATH"), "%s", host.Install("llvm"))
	}
	return best, nil
}

func findLLVM(ctx context.Context) (Toolchain, error) {
	var best Toolchain
	var missing error
	for _, dir := range programDirs("clang") {
		t, err := inspect(ctx, dir)
		if err != nil {
			missing = err
		} else if best.Dir == "" || newer(t, best) {
			best = t
		}
	}
	switch {
	case best.Dir != "":
		return best, nil
	case missing == nil:
		missing = errors.New("no clang found on the PATH")
	}
	return best, host.Hint(missing, "%s", host.Install("llvm"))
}

// newer prefers a linker that has the flag, then the higher version.
func newer(a, b Toolchain) bool {
	if a.randomizes != b.randomizes {
		return a.randomizes
	}
	return major(a.LLD) > major(b.LLD)
}

func major(version string) int {
	n, _ := strconv.Atoi(strings.SplitN(version, ".", 2)[0])
	return n
}

// programDirs are the real folders of every clang and clang-NN on the PATH, or
// of another of LLVM's programs.
func programDirs(program string) []string {
	seen := map[string]bool{}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		names, _ := filepath.Glob(filepath.Join(dir, program+"-[0-9]*"))
		for _, name := range append(names, filepath.Join(dir, program)) {
			if _, err := exec.LookPath(name); err != nil {
				continue
			}
			if real, err := filepath.EvalSymlinks(name); err == nil {
				seen[filepath.Dir(real)] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

func inspect(ctx context.Context, dir string) (Toolchain, error) {
	t := Toolchain{Dir: dir}
	for _, tool := range llvmTools {
		if _, err := exec.LookPath(filepath.Join(dir, tool)); err != nil {
			return t, fmt.Errorf("%s has no %s", dir, tool)
		}
	}
	out, err := host.Output(ctx, "", host.Environment(t.PATH()), filepath.Join(dir, "clang"), "--version")
	if err != nil {
		return t, err
	}
	t.Clang = version.FindString(string(out))
	return t, t.inspectLinker(ctx, t.Linker())
}

func (t *Toolchain) inspectLinker(ctx context.Context, program string) error {
	out, err := host.Output(ctx, "", host.Environment(t.PATH()), program, "--version")
	if err != nil {
		return err
	}
	t.LLD = version.FindString(string(out))
	help, err := host.Output(ctx, "", host.Environment(t.PATH()), program, "--help")
	t.randomizes = strings.Contains(string(help), "--randomize-section-padding")
	return err
}

// useLinker makes the linker that a build was linked with the toolchain's. In the
// place of another than lld, it is lld that links the layouts.
func (t *Toolchain) useLinker(ctx context.Context, name string) error {
	if name == "ld.lld" {
		return nil
	}
	if !strings.HasPrefix(filepath.Base(name), "ld.lld") {
		return t.inspectLinker(ctx, t.Linker())
	}
	return t.inspectLinker(ctx, name)
}

func (t Toolchain) Linker() string { return filepath.Join(t.Dir, "ld.lld") }

// PATH is one on which LLVM's plain names are this toolchain's.
func (t Toolchain) PATH() string {
	return t.Dir + string(filepath.ListSeparator) + os.Getenv("PATH")
}

// FindLLD is the lld of a version, of those on the PATH.
func FindLLD(ctx context.Context, want string) (Toolchain, error) {
	var found []string
	for _, dir := range programDirs("ld.lld") {
		t := Toolchain{Dir: dir}
		if _, err := exec.LookPath(t.Linker()); err != nil {
			continue // it has another name here, of which the linker's errors would begin
		}
		if err := t.inspectLinker(ctx, t.Linker()); err != nil {
			return t, err
		}
		if t.LLD == want {
			return t, nil
		}
		found = append(found, t.LLD+" in "+dir)
	}
	here := "there is none here"
	if found != nil {
		here = "here is " + strings.Join(found, ", ")
	}
	return Toolchain{}, host.Hint(errors.New(here+", and another may give other images"), "%s, in version %s", host.Install(fmt.Sprintf("lld-%d", major(want))), want)
}

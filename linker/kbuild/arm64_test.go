package kbuild

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"unlucky/arch"
	"unlucky/host"
	"unlucky/scenarios"
)

// An option of the kernel's link can be left out, and one that it has not is told.
func TestLinkWithout(t *testing.T) {
	link := func(without ...string) (*Build, error) {
		p := &Build{Args: []string{"ld.lld", "-EL -maarch64elf", "-shared --fix-cortex-a53-843419 -z notext"}, without: without}
		return p, p.leaveOut()
	}
	p, err := link(FixErratum, "-EL")
	if want := []string{"ld.lld", "-maarch64elf", "-shared -z notext"}; err != nil || !slices.Equal(p.Args, want) {
		t.Errorf("%q, %v; want %q", p.Args, err, want)
	}
	var h *host.HintError
	if _, err := link("--fix"); !errors.As(err, &h) || !strings.Contains(h.Hint, FixErratum) {
		t.Errorf("an option that the link has not: %v", err)
	}
}

// Of several targets of make the first is taken that the tree has a file for.
func TestConfigTarget(t *testing.T) {
	p := &Build{Source: t.TempDir(), Arch: arch.ARM64}
	if got := p.target("gki_defconfig defconfig"); got != "defconfig" {
		t.Errorf("without gki_defconfig it is %s", got)
	}
	configs := filepath.Join(p.Source, "arch/arm64/configs")
	if err := errors.Join(os.MkdirAll(configs, 0o755), os.WriteFile(filepath.Join(configs, "gki_defconfig"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if got := p.target("gki_defconfig defconfig"); got != "gki_defconfig" {
		t.Errorf("with gki_defconfig it is %s", got)
	}
}

// GCC of another architecture has its own name, and its binutils have, too.
func TestCrossCompiler(t *testing.T) {
	for compiler, want := range map[string]string{"": "", "gcc": "gcc", "gcc-12": "gcc-12"} {
		for _, a := range arch.All {
			prefix := a.Cross()
			if want == "" {
				prefix = ""
			}
			if got := compilerOf(scenarios.Kernel{Arch: a.Name, Compiler: compiler}); got != prefix+want {
				t.Errorf("%s of %s is %s", compiler, a.Name, got)
			}
		}
	}
	for cc, want := range map[string]string{
		"":                         "LLVM=1",
		"gcc-12":                   "CC=gcc-12 LD=ld.lld",
		"aarch64-linux-gnu-gcc-12": "CC=aarch64-linux-gnu-gcc-12 LD=ld.lld CROSS_COMPILE=aarch64-linux-gnu-",
	} {
		if got := strings.Join(Toolchain{cc: cc}.makeArgs(), " "); got != want {
			t.Errorf("%s: make %s, want %s", cc, got, want)
		}
	}
}

// The symbols that hang on addresses are kept out of what the link script lists, and
// its status comes back.
func TestHideSymbols(t *testing.T) {
	p := &Build{Dir: t.TempDir(), Arch: arch.ARM64, Env: []string{"PATH=" + os.Getenv("PATH"), "NM=printf"}}
	if err := p.hideSymbols(); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (string, error) {
		cmd := exec.Command(filepath.Join(p.Dir, "nm"), args...)
		cmd.Env = p.Env
		out, err := cmd.Output()
		return string(out), err
	}
	in := "1 t __CortexA53843419_FFFFFFC080012FF8\n2 T __hyp_text_end\n2 T __kvm_nvhe___hyp_text_end\n3 t canary_victim\n4 T __hyp_text_end_of\n"
	if got, err := run(in); err != nil || got != "3 t canary_victim\n4 T __hyp_text_end_of\n" {
		t.Errorf("%v, %q", err, got)
	}
	if !slices.Contains(p.Env, "NM="+filepath.Join(p.Dir, "nm")) {
		t.Errorf("the script does not list symbols by it: %q", p.Env)
	}
	p.Env = append(p.Env, "UNLUCKY_NM=false")
	if out, err := run(in); err == nil {
		t.Errorf("a program that fails gives %q", out)
	}
	x86 := &Build{Dir: t.TempDir(), Arch: arch.X86_64, Env: []string{"NM=nm"}}
	if err := x86.hideSymbols(); err != nil || !slices.Equal(x86.Env, []string{"NM=nm"}) {
		t.Errorf("x86-64's: %v, %q", err, x86.Env)
	}
}

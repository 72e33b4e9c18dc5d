package kbuild

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"unlucky/arch"
	"unlucky/host"
	"unlucky/scenarios"
)

// Fact is one thing that is known of a kernel before it is prepared.
type Fact struct {
	Name, Text string
	Err        error // what will stop it, with a hint; Text is empty then
}

// facts gathers what is known, in the order in which a person asks.
type facts []Fact

func (f *facts) add(name, format string, a ...any) {
	*f = append(*f, Fact{Name: name, Text: fmt.Sprintf(format, a...)})
}

// check adds what will stop it, or else that it is well.
func (f *facts) check(name string, err error, well string) bool {
	fact := Fact{Name: name, Text: well}
	if err != nil {
		fact = Fact{Name: name, Err: err}
	}
	*f = append(*f, fact)
	return err == nil
}

// Foresee tells what Prepare would do, without building or fetching anything: which
// kernel it would take, what it would set, what could move in its layouts, how each
// would be linked, and about how long all that takes. Nothing is written outside
// of the temporary folder.
func Foresee(ctx context.Context, cache string, k scenarios.Kernel, progress Progress) []Fact {
	var f facts
	if k.Build != "" {
		f.finished(ctx, k.Build)
		return f
	}
	a, err := arch.Of(k.Arch)
	if err != nil {
		return append(f, Fact{Name: "architecture", Err: err})
	}
	source, version := k.Dir, ""
	if k.Package != "" {
		p, err := findPackage(ctx, cache, parseRequest(k.Package))
		if err != nil {
			f.add("source", "%s is not here: a sweep fetches it from Debian's suites, without root (some 160 MB)", k.Package)
		} else {
			f.add("source", "%s, %s", p, p.From())
			dir, err := os.MkdirTemp("", "unlucky-")
			if err == nil {
				defer os.RemoveAll(dir)
				err = unpackDeclared(ctx, p, declaredIn(a), dir, progress)
			}
			if err != nil {
				return append(f, Fact{Name: "source", Err: err})
			}
			source, version = dir, p.Version
		}
	} else {
		script, err := patchedScript(k.Dir)
		if errors.Is(err, os.ErrNotExist) {
			err = host.Hint(fmt.Errorf("%s is no kernel tree: %w", k.Dir, err), "give the folder that holds the kernel's Makefile")
		}
		how := "only links to it are made"
		if left := builtInPlace(k.Dir, a); left != "" {
			how = "built in place (" + left + "), so its files are copied"
		} else if len(k.Patches) > 0 {
			how = "to be patched, so its files are copied"
		}
		if !f.check("source", err, fmt.Sprintf("%s, %s", k.Dir, how)) || script == nil {
			return f
		}
		version = treeVersion(k.Dir)
	}
	if version != "" && version != unknownVersion {
		f.add("version", "%s", version)
	}
	f.symbols(k, source, a)
	for _, p := range k.Patches {
		text := fmt.Sprintf("%s, wanted %s", p.File, p.Want)
		if p.Tested != "" {
			text += ", known to fit up to " + p.Tested
		}
		f.add("patch", "%s", text)
	}
	if tools, err := FindToolchain(ctx, compilerOf(k)); err == nil {
		f.add("compiler", "%s, lld %s", tools.Compiler(), tools.LLD)
	}
	here, notHere := locate(ctx, cache, k)
	if IsConfig(k.Config) {
		config, err := findPackage(ctx, cache, parseRequest(k.Config))
		if err != nil {
			f.add("configuration", "%s is not here: a sweep fetches it from Debian's suites", k.Config)
		} else if k.Config, err = readConfig(ctx, config); f.check("configuration", err, fmt.Sprintf("%s, %s", config, config.From())) {
			f.outcome(settingOf(k))
		}
	} else {
		f.add("configuration", "%s", configName(k))
		f.outcome(settingOf(k))
	}
	if err := notHere; err == nil {
		if s, err := here.ReadState(); err == nil && k.Package != "" {
			f.add("build", "none: it is prepared, vmlinux.o %.12s", s.Object)
			return f
		} else if err == nil {
			f.add("build", "what has changed since the last one, vmlinux.o %.12s", s.Object)
			return f
		}
	}
	if !IsConfig(k.Config) { // else nobody knows what is in it
		f.add("build", "about %s on %d CPUs", buildTime(k), runtime.NumCPU())
	}
	return f
}

// unpackDeclared takes only some files of a package out.
func unpackDeclared(ctx context.Context, p Package, files []string, to string, progress Progress) error {
	progress("looking into "+filepath.Base(p.File), 0, 0)
	argv := []string{"tar", "-xJf", p.File, "-C", to, "--strip-components=1", "--occurrence=1"}
	for _, name := range files {
		argv = append(argv, p.Name+"/"+name)
	}
	_, err := host.Output(ctx, "", host.Environment(os.Getenv("PATH")), argv...)
	return err
}

// symbols tells what will be set, by the names that the tree has for it.
func (f *facts) symbols(k scenarios.Kernel, source string, a *arch.Arch) {
	names, err := symbolNames(source, a)
	if err != nil {
		*f = append(*f, Fact{Name: "set", Err: err})
		return
	}
	if len(k.Set) > 0 {
		f.add("set", "%s", strings.Join(names.settings(k.Set), " "))
	}
	if len(k.Try) > 0 {
		f.add("set if it can be", "%s", strings.Join(names.settings(k.Try), " "))
	}
	var renamed []string
	for i, now := range names.settings(slices.Concat(k.Set, k.Try)) {
		if old := slices.Concat(k.Set, k.Try)[i]; old != now {
			from, _, _ := strings.Cut(old, "=")
			to, _, _ := strings.Cut(now, "=")
			renamed = append(renamed, from+" is "+to)
		}
	}
	if renamed != nil {
		f.add("renamed here", "%s", strings.Join(renamed, ", "))
	}
}

// settingOf looks a symbol up in what a scenario sets, and then in the text of its
// configuration; "" is unknown.
func settingOf(k scenarios.Kernel) func(symbol string) string {
	return func(symbol string) string {
		for _, s := range slices.Concat(k.Set, k.Try) {
			if value, ok := strings.CutPrefix(s, symbol+"="); ok {
				return value
			}
		}
		return settingIn([]byte(k.Config))(symbol)
	}
}

// settingIn looks a symbol up in a .config.
func settingIn(config []byte) func(symbol string) string {
	return func(symbol string) string {
		m := regexp.MustCompile(`(?m)^(?:# )?CONFIG_` + symbol + `(?:=(.*)| is not set)$`).FindSubmatch(config)
		switch {
		case m == nil:
			return ""
		case m[1] == nil:
			return "n"
		}
		return string(m[1])
	}
}

// outcome tells what a configuration means for layouts.
func (f *facts) outcome(setting func(symbol string) string) {
	if setting("LTO_CLANG_THIN") == "y" || setting("LTO_CLANG_FULL") == "y" {
		f.add("what can move", "each function by itself: with LTO each has a section of its own")
	} else {
		f.add("what can move", "each function by itself: without LTO it is compiled so that each has a section of its own, and vmlinux.o is linked; the baseline is therefore not the image that plain make would give")
	}
	f.links()
}

func (f *facts) links() {
	f.add("links", "one pass of lld for a layout, once the first has shown that it gives the image of link-vmlinux.sh; else that script")
}

// configName is a configuration in a word.
func configName(k scenarios.Kernel) string {
	if n := strings.Count(k.Config, "\n"); n > 0 {
		return fmt.Sprintf("a .config of %d lines, and kconfig's defaults", n)
	}
	return "make " + strings.Join(strings.Fields(k.Config), ", or else ")
}

// CPU minutes of a build that were measured, and the symbols that are y in it:
// the kernel of small.config, and x86_64_defconfig with ThinLTO.
const (
	smallMinutes, smallSymbols         = 7, 500
	defconfigMinutes, defconfigSymbols = 70, 1660
)

// buildMinutes is about how long a kernel of so many symbols takes on one CPU, on
// the curve through those two.
func buildMinutes(symbols int) float64 {
	power := math.Log(float64(defconfigMinutes)/smallMinutes) / math.Log(float64(defconfigSymbols)/smallSymbols)
	return smallMinutes * math.Pow(float64(max(symbols, smallSymbols))/smallSymbols, power)
}

// buildTime is about how long the first build of a kernel takes here.
func buildTime(k scenarios.Kernel) string {
	var minutes float64
	switch {
	case strings.Contains(k.Config, "\n"):
		minutes = buildMinutes(len(regexp.MustCompile(`(?m)^CONFIG_\w+=y$`).FindAllString(k.Config, -1)))
	case k.Config == "tinyconfig" || k.Config == "allnoconfig":
		minutes = smallMinutes
	case strings.HasSuffix(k.Config, "defconfig"):
		minutes = defconfigMinutes
	default: // all of the kernel
		return "many hours"
	}
	return fmt.Sprintf("%.0f min", math.Ceil(minutes/float64(runtime.NumCPU())))
}

// finished tells whether a finished build can be taken as it is.
func (f *facts) finished(ctx context.Context, build string) {
	source, err := sourceOf(build)
	if !f.check("source", err, source) {
		return
	}
	_, err = patchedScript(source)
	if !f.check("version", err, treeVersion(source)) {
		return
	}
	config, _ := os.ReadFile(filepath.Join(build, ".config")) // make says what it means that there is none
	setting := settingIn(config)
	if by := strings.Trim(setting("CC_VERSION_TEXT"), `"`); by != "" {
		f.add("made by", "%s", by)
	}
	args, err := scriptArgs(build)
	if err != nil {
		f.check("link", err, "")
		return
	}
	if tools, err := FindToolchain(ctx, compilerOf(scenarios.Kernel{Build: build})); err == nil { // else that is said of the tools
		if err = tools.useLinker(ctx, args[0]); err == nil {
			err = checkLinker(build, tools.LLD)
		}
		f.check("linked by", err, "lld "+tools.LLD)
	}
	path := filepath.Join(build, "vmlinux.o")
	if err := checkFinished(build); err != nil {
		f.check("vmlinux.o", err, "")
	}
	n, err := sectionsOf(path)
	if errors.Is(err, os.ErrNotExist) {
		err = host.Hint(fmt.Errorf("this kernel's link takes no vmlinux.o: %w", err), "run make vmlinux in it (before 6.1 no kernel can be swept)")
	}
	if err != nil {
		f.check("vmlinux.o", err, "")
		return
	}
	f.add("vmlinux.o", "there, with %d sections of functions", n)
	if n >= leastSections {
		f.add("what can move", "each function that has a section of its own")
	} else {
		f.add("what can move", "object files, each as a whole: its functions have no sections of their own, as CFLAGS_KERNEL=-ffunction-sections or LTO gives them")
	}
	f.links()
	f.add("build", "none: a finished one is taken as it is, and only read")
}

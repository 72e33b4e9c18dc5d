// Package kbuild knows kernel trees: it finds or fetches a source, patches and
// configures it, has make build it once below the cache, or takes a finished build,
// and says what its link-vmlinux.sh is called with.
package kbuild

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/google/renameio/v2"
	"github.com/google/shlex"

	"unlucky/arch"
	"unlucky/host"
	"unlucky/scenarios"
)

// Build is a kernel that has been built once, and all that its link takes: its
// folders, and what kbuild hands to link-vmlinux.sh.
type Build struct {
	Toolchain
	Dir     string // its folder in the cache
	Source  string // what kbuild calls srctree
	Objtree string // what kbuild calls objtree, with vmlinux.o in it
	Digest  string // SHA-256 of vmlinux.o, hex: the key of everything later
	Arch    *arch.Arch
	Image   string // one of Arch's
	// Package is the Debian source package that it was made from, and Config
	// the one of its configuration, if any.
	Package, Config Package

	Args        []string // of link-vmlinux.sh, the linker first
	Env         []string // what link-vmlinux.sh sees
	Environment []string // kbuild's whole environment, without the user's
	Srctree     string   // the source, as seen from Objtree: "..", "." or absolute

	without  []string // options of the linker that are left out of Args
	units    bool     // the units of its layouts are object files
	sections []string // what make is told beside, for a section per function
	lock     *flock.Flock
}

// BuildName is that of the O= folder, in the source, and of a worker's, in
// its folder of links to the source.
const BuildName = "build"

// State is the file that makes a kernel folder a prepared kernel.
type State struct {
	Object string `json:"vmlinux.o"` // its SHA-256
	Bytes  int64  `json:"bytes"`     // of the whole folder
}

// Prepare returns the kernel that k describes, building it below cache if it
// is not there yet. A package or a finished build that is there is taken as it
// is; a tree always goes through make. The kernel's folder stays locked
// against being removed or built until Close.
func Prepare(ctx context.Context, cache string, k scenarios.Kernel, progress Progress) (*Build, error) {
	if progress == nil {
		progress = func(string, int64, int64) {}
	}
	if k.Package != "" {
		source, err := FetchPackage(ctx, cache, k.Package, progress)
		if err != nil {
			return nil, CacheFull(err, cache)
		}
		k.Package = source.String()
	}
	if IsConfig(k.Config) {
		config, err := FetchPackage(ctx, cache, k.Config, progress)
		if err != nil {
			return nil, CacheFull(err, cache)
		}
		k.Config = config.String()
	}
	if err := Check(ctx, k); err != nil {
		return nil, err
	}
	p, err := locate(ctx, cache, k)
	if err != nil {
		return nil, err
	}
	if p.Config.Name != "" {
		if k.Config, err = readConfig(ctx, p.Config); err != nil {
			return nil, err
		}
	}
	if err := p.Take(ctx, progress); err != nil {
		return nil, err
	}
	if err := p.prepare(ctx, k, progress); err != nil {
		if p.Alone() && !p.begun() {
			err = errors.Join(err, os.RemoveAll(p.Dir)) // nothing in it that another try could go on from
		}
		p.Close()
		return nil, CacheFull(err, cache)
	}
	return p, nil
}

// Check refuses a kernel that cannot be prepared whatever its source says: a tool
// is missing, or what k names is no source.
func Check(ctx context.Context, k scenarios.Kernel) error {
	if _, err := FindToolchain(ctx, compilerOf(k)); err != nil {
		return err
	}
	switch {
	case k.Build != "":
		_, err := sourceOf(k.Build)
		return err
	case k.Dir != "":
		if _, err := os.Stat(filepath.Join(k.Dir, "scripts/link-vmlinux.sh")); err != nil {
			return host.Hint(fmt.Errorf("%s is no kernel tree: %w", k.Dir, err), "give the folder that holds the kernel's Makefile")
		}
		return checkNeeds()
	}
	return nil
}

// begun tells whether anything of the kernel has been compiled.
func (p *Build) begun() bool { return exists(p.statePath()) || exists(p.logPath()) }

// logPath is that of the compiler's output.
func (p *Build) logPath() string { return filepath.Join(p.Dir, "build.log") }

// Prepared tells whether Prepare would find the kernel ready to be linked.
func Prepared(ctx context.Context, cache string, k scenarios.Kernel) bool {
	p, err := locate(ctx, cache, k)
	if err != nil {
		return false
	}
	_, err = p.ReadState()
	return err == nil
}

// locate finds the kernel's folder in the cache, and its packages on this machine.
func locate(ctx context.Context, cache string, k scenarios.Kernel) (p *Build, err error) {
	tools, err := FindToolchain(ctx, compilerOf(k))
	if err != nil {
		return nil, err
	}
	a, err := arch.Of(k.Arch)
	if err != nil {
		return nil, err
	}
	var key string
	var source, config Package
	switch {
	case k.Build != "":
		key = "build of " + k.Build
	case k.Dir != "":
		key = "tree of " + k.Dir
	default:
		if source, err = findPackage(ctx, cache, parseRequest(k.Package)); err != nil {
			return nil, err
		}
		k.Package, key = source.Name, source.Version
	}
	if IsConfig(k.Config) {
		if config, err = findPackage(ctx, cache, parseRequest(k.Config)); err != nil {
			return nil, err
		}
		k.Config = config.String()
	}
	p = NewBuild(filepath.Join(cache, kernelName(k, key, tools)), tools)
	p.Arch, p.Image, p.Package, p.Config, p.without = a, k.Image, source, config, k.LinkWithout
	return p, nil
}

// NewBuild is one whose folder in the cache is dir. There may be nothing in it yet.
func NewBuild(dir string, tools Toolchain) *Build {
	source := filepath.Join(dir, "source")
	return &Build{Toolchain: tools, Dir: dir, Source: source, Objtree: filepath.Join(source, BuildName), lock: flock.New(filepath.Join(dir, "lock"))}
}

// recipe counts up when make is called in another way.
const recipe = "2"

// kernelName is the folder of a kernel in the cache: readable, and different
// for whatever makes a different vmlinux.o.
func kernelName(k scenarios.Kernel, key string, t Toolchain) string {
	k.Image, k.LinkWithout, k.Sections = "", nil, "" // of one build
	spec, err := json.Marshal(k)
	if err != nil {
		panic(err) // strings and slices of strings
	}
	sum := sha256.Sum256([]byte(recipe + string(spec) + key + t.Dir + t.Clang + t.GCC + t.LLD))
	name := k.Package
	if name == "" {
		name = filepath.Base(k.Dir + k.Build)
	}
	return name + "-" + hex.EncodeToString(sum[:6])
}

// Take makes and locks the kernel's folder, exclusively where it has to be built.
func (p *Build) Take(ctx context.Context, progress Progress) error {
	if err := os.MkdirAll(p.Dir, 0o755); err != nil {
		return err
	}
	for wait := false; ; wait = true {
		ok, err := p.lock.TryLock()
		if err != nil {
			return fmt.Errorf("locking %s: %w", p.Dir, err)
		}
		if ok {
			return nil
		}
		if ok, err = p.lock.TryRLock(); err != nil {
			return fmt.Errorf("locking %s: %w", p.Dir, err)
		} else if ok {
			if _, err := p.ReadState(); err == nil {
				return nil // in use by others, and prepared: use it with them
			}
			p.lock.Unlock()
		}
		if !wait {
			progress(fmt.Sprintf("waiting for another unlucky%s that prepares this kernel", host.LockHolder(p.lock.Path())), 0, 0)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// BootFile is what is booted, in Objtree, where kbuild's makefiles make that of
// vmlinux; empty where it is vmlinux itself.
func (p *Build) BootFile() string { return p.Arch.BootFile(p.Image) }

// Close releases the kernel.
func (p *Build) Close() error { return p.lock.Unlock() }

func (p *Build) prepare(ctx context.Context, k scenarios.Kernel, progress Progress) error {
	alone := p.Alone()
	for _, base := range []string{p.Dir, p.Source, host.MemoryDir} {
		host.RemoveRooms(base)
	}
	var err error
	switch {
	case k.Build != "":
		err = p.adopt(ctx, k.Build, alone, progress)
	case k.Dir != "" && !alone:
		return host.Hint(fmt.Errorf("another unlucky%s is using the build of %s", host.LockHolder(p.lock.Path()), k.Dir), "wait for it, or build the tree yourself and give that with -build")
	case k.Dir != "":
		err = p.buildTree(ctx, k, progress)
	default:
		var s State
		if s, err = p.ReadState(); err == nil {
			whole := p.BootFile() == "" || exists(filepath.Join(p.Objtree, p.BootFile()))
			if err = p.open(ctx); err == nil && p.Digest == s.Object && whole {
				return p.Ready()
			}
			if err == nil && p.Digest == s.Object && !alone {
				return host.Hint(fmt.Errorf("the prepared kernel in %s has no %s yet and is in use", p.Dir, p.Image), "wait for the other unlucky, then run this again")
			}
			if err == nil && p.Digest == s.Object {
				err = p.build(ctx, k, progress) // goes on from what is there
				break
			}
			if !alone {
				return host.Hint(fmt.Errorf("the prepared kernel in %s is damaged and in use", p.Dir), "stop the other unlucky, then run this again")
			}
			progress(fmt.Sprintf("%s is damaged: preparing it again", p.Dir), 0, 0)
			if err := os.RemoveAll(p.Source); err != nil {
				return err
			}
		}
		err = p.buildPackage(ctx, k, progress)
	}
	if err == nil {
		err = p.open(ctx)
	}
	if err != nil {
		return err
	}
	return p.Ready()
}

// Alone tells whether nobody else uses the kernel's folder: it may be filled.
func (p *Build) Alone() bool { return p.lock.Locked() }

// Ready marks the kernel as used now, for Clean, and lets others use it too.
func (p *Build) Ready() error {
	now := time.Now()
	err := os.Chtimes(p.Dir, now, now)
	if err == nil && p.Alone() {
		err = p.lock.RLock()
	}
	return err
}

// Forget takes back what WriteState has noted, before the kernel is changed.
func (p *Build) Forget() error {
	err := os.Remove(p.statePath())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func (p *Build) statePath() string { return filepath.Join(p.Dir, "prepared.json") }

// ReadState is what WriteState has noted.
func (p *Build) ReadState() (s State, err error) {
	data, err := os.ReadFile(p.statePath())
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(data, &s)
}

// WriteState notes that the kernel is whole, and its vmlinux.o.
func (p *Build) WriteState() error {
	digest, err := FileDigest(filepath.Join(p.Objtree, "vmlinux.o"))
	if err != nil {
		return err
	}
	size, err := DiskUsage(p.Dir)
	if err != nil {
		return err
	}
	data, err := json.Marshal(State{digest, size})
	if err != nil {
		return err
	}
	return replaceFile(p.statePath(), append(data, '\n'), 0o644)
}

func (p *Build) buildPackage(ctx context.Context, k scenarios.Kernel, progress Progress) error {
	if err := checkNeeds(); err != nil {
		return err
	}
	p.Forget()
	if _, err := os.Stat(p.Source); err != nil {
		copied, err := p.copyPrepared(ctx, k, progress)
		if err == nil && !copied {
			err = unpack(ctx, p.Package.File, p.Source, k.Patches, progress)
		}
		if err != nil {
			return err
		}
	}
	return p.build(ctx, k, progress)
}

func (p *Build) buildTree(ctx context.Context, k scenarios.Kernel, progress Progress) error {
	var err error
	if len(k.Patches) > 0 || builtInPlace(k.Dir, p.Arch) != "" {
		err = copySource(ctx, p.Arch, k.Dir, p.Source, k.Patches, progress)
	} else {
		err = LinkFarm(k.Dir, p.Source)
	}
	if err != nil {
		return err
	}
	return p.build(ctx, k, progress)
}

// Script is the patched link-vmlinux.sh.
func (p *Build) Script() string {
	if filepath.Dir(p.Objtree) == p.Source && !p.units { // whose folder leads into the user's
		// Here make finds it before the one of the source.
		return filepath.Join(p.Objtree, "scripts/link-vmlinux.sh")
	}
	return filepath.Join(p.Dir, "link-vmlinux.sh")
}

func patchedScript(source string) ([]byte, error) {
	path := filepath.Join(source, "scripts/link-vmlinux.sh")
	script, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if makesObject.Match(script) {
		return nil, host.Hint(fmt.Errorf("a tree of Linux %s, older than 6.1: its %s makes vmlinux.o itself, and would overwrite a padded one", treeVersion(source), path),
			"for this one use `unlucky patch` and plain make")
	}
	patched, err := PatchScript(script)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return linksObject.ReplaceAll(patched, []byte("${1}if true ||")), nil
}

// linksObject finds where the script chooses between vmlinux.o and, without LTO and
// IBT, vmlinux.a: only the one object can be edited.
var linksObject = regexp.MustCompile(`(?m)^([ \t]*)if is_enabled CONFIG_LTO_CLANG \|\|`)

const unknownVersion = "?"

// treeVersion is that of a source tree, "6.12.117", by its Makefile, or unknown.
func treeVersion(source string) string {
	data, _ := os.ReadFile(filepath.Join(source, "Makefile"))
	m := makefileVersion.FindSubmatch(data)
	if m == nil {
		return unknownVersion
	}
	return fmt.Sprintf("%s.%s.%s", m[1], m[2], m[3])
}

var makefileVersion = regexp.MustCompile(`(?m)^VERSION = (\d+)\nPATCHLEVEL = (\d+)\nSUBLEVEL = (\d+)$`)

// makesObject finds the link of vmlinux.o in the scripts of 6.0 and earlier.
var makesObject = regexp.MustCompile(`(?m)^\s*(modpost_link|\$\{?LD\}?.*-r.*-o) vmlinux\.o`)

// build configures and makes a kernel in its own folder.
func (p *Build) build(ctx context.Context, k scenarios.Kernel, progress Progress) error {
	if err := checkNeeds(); err != nil {
		return err
	}
	script, err := patchedScript(p.Source)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(p.Script()), 0o755); err != nil {
		return err
	}
	if old, err := os.ReadFile(p.Script()); err != nil || !bytes.Equal(old, script) {
		if err := replaceFile(p.Script(), script, 0o755); err != nil {
			return err
		}
	}
	progress("configuring the kernel (seconds)", 0, 0)
	if err := p.configure(ctx, k, progress); err != nil {
		return err
	}
	if p.sections, err = sectionArgs(p.Source, p.Objtree, p.Arch); err != nil {
		return err
	}
	if err := p.checkWarnings(); err != nil {
		return err
	}
	if p.sections != nil {
		progress("without LTO: compiled with a section for each function, and vmlinux linked of vmlinux.o: the baseline is not the image that plain make would give", 0, 0)
	}
	logPath := p.logPath()
	log, err := os.OpenFile(logPath, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cpus := runtime.NumCPU()
	step := fmt.Sprintf("compiling the kernel's objects (a small kernel takes about %d min on %d CPUs, a defconfig %d)",
		1+smallMinutes/cpus, cpus, 1+defconfigMinutes/cpus)
	count := &objectCounter{report: func(n int64) { progress(step, n, 0) }}
	count.report(0)
	// vmlinux.o is what the layouts are made of; vmlinux shows that it links.
	if err := p.Make(ctx, k, io.MultiWriter(log, count), "-j", fmt.Sprint(cpus), p.Image); err != nil {
		if ctx.Err() != nil {
			return err
		}
		return host.Hint(fmt.Errorf("building the kernel: %w%s", err, compilerErrors(logPath)), "the whole log is %s", logPath)
	}
	return p.WriteState()
}

func (p *Build) Make(ctx context.Context, k scenarios.Kernel, out io.Writer, args ...string) error {
	if k.Package != "" {
		// Nobody mends a package's warnings, and finding them takes an eighth
		// of the time.
		args = append(args, "KCFLAGS=-w")
		// Kconfig writes down whether there are Rust and pahole, and each
		// line of it moves what clang notes of the source: the same package
		// must give the same vmlinux.o on every machine.
		for symbol, tool := range map[string]string{"RUST=y": "RUSTC", "DEBUG_INFO_BTF=y": "PAHOLE"} {
			if !slices.Contains(k.Set, symbol) && !slices.Contains(k.Try, symbol) && !strings.Contains(k.Config, "CONFIG_"+symbol) {
				args = append(args, tool+"=false")
			}
		}
	}
	// Fixed where kbuild would put the time, the user and the host into the image.
	env := host.Environment(p.PATH(), "KBUILD_BUILD_TIMESTAMP=Thu Jan  1 00:00:00 UTC 1970",
		"KBUILD_BUILD_USER=unlucky", "KBUILD_BUILD_HOST=unlucky", "KBUILD_BUILD_VERSION=1")
	return host.Run(ctx, p.Source, env, out, slices.Concat([]string{"make", "O=" + BuildName, "ARCH=" + p.Arch.Kernel}, p.makeArgs(), p.sections, args)...)
}

// configure writes .config: the base, then the symbols to set, then what
// kconfig makes of them. A symbol that kconfig dropped is an error.
func (p *Build) configure(ctx context.Context, k scenarios.Kernel, progress Progress) error {
	path := filepath.Join(p.Objtree, ".config")
	before, _ := os.ReadFile(path)
	info, _ := os.Stat(path)
	run := func(target string) error {
		var log bytes.Buffer
		if err := p.Make(ctx, k, &log, target); err != nil {
			return fmt.Errorf("make %s: %w%s", target, err, host.LastLines(log.Bytes(), 10))
		}
		return nil
	}
	if strings.Contains(k.Config, "\n") {
		if err := os.WriteFile(path, []byte(k.Config), 0o644); err != nil {
			return err
		}
	} else if err := run(p.target(k.Config)); err != nil {
		return err
	}
	config, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	names, err := symbolNames(p.Source, p.Arch)
	if err != nil {
		return err
	}
	set, try := names.settings(k.Set), names.settings(k.Try)
	config = names.apply(config, append(slices.Clip(set), try...))
	if err := os.WriteFile(path, config, 0o644); err != nil {
		return err
	}
	if err := run("olddefconfig"); err != nil {
		return err
	}
	if config, err = os.ReadFile(path); err != nil {
		return err
	}
	if dropped := dropped(config, set); dropped != nil {
		return host.Hint(fmt.Errorf("kconfig did not take %s", strings.Join(dropped, ", ")),
			"this kernel has no such symbol, or one that it depends on is off: look for it in menuconfig with /")
	}
	if dropped := dropped(config, try); dropped != nil {
		progress("leaving out "+strings.Join(dropped, ", ")+", which this kernel does not take", 0, 0)
	}
	if info != nil && bytes.Equal(before, config) { // nothing for make to do
		return os.Chtimes(path, info.ModTime(), info.ModTime())
	}
	return nil
}

// target is the first of some targets of make for which the tree has a configuration,
// or else the last.
func (p *Build) target(of string) string {
	targets := strings.Fields(of)
	for _, t := range targets {
		if exists(filepath.Join(p.Source, p.Arch.Folder(), "configs", t)) {
			return t
		}
	}
	return targets[len(targets)-1]
}

// objectCounter counts the objects in kbuild's output.
type objectCounter struct {
	n      int64
	line   []byte
	report func(int64)
}

func (c *objectCounter) Write(b []byte) (int, error) {
	for rest := b; ; {
		line, tail, found := bytes.Cut(rest, []byte("\n"))
		c.line = append(c.line, line...)
		if !found {
			return len(b), nil
		}
		if f := bytes.Fields(c.line); len(f) > 1 && bytes.HasSuffix(f[len(f)-1], []byte(".o")) {
			c.n++
			c.report(c.n)
		}
		c.line, rest = c.line[:0], tail
	}
}

// compilerErrors are the lines of a build log that say what went wrong.
func compilerErrors(log string) string {
	data, err := os.ReadFile(log)
	if err != nil {
		return ""
	}
	if lines := errorLine.FindAll(data, 6); lines != nil {
		return host.LastLines(bytes.Join(lines, []byte("\n")), 6)
	}
	return host.LastLines(data, 12)
}

var errorLine = regexp.MustCompile(`(?m)^.*(?i:\berror:|\bfatal:|: not found$|No space left).*$`)

// open reads what a build left for later links.
func (p *Build) open(ctx context.Context) error {
	path := filepath.Join(p.Objtree, "vmlinux.o")
	if _, err := os.Stat(path); err != nil {
		return host.Hint(fmt.Errorf("this kernel's link takes no vmlinux.o: %w", err), "run make vmlinux in it (before 6.1 no kernel can be swept)")
	}
	var err error
	if p.Digest, err = FileDigest(path); err != nil {
		return err
	}
	if p.Args, err = scriptArgs(p.Objtree); err != nil {
		return err
	}
	if err := p.leaveOut(); err != nil {
		return err
	}
	if err := p.useLinker(ctx, p.Args[0]); err != nil {
		return err
	}
	if err := checkLinker(p.Objtree, p.LLD); err != nil {
		return err
	}
	if !strings.HasPrefix(filepath.Base(p.Args[0]), "ld.lld") { // ld.bfd, whose options lld takes but for this
		p.Args[0] = "ld.lld"
		p.Args[1], p.Args[2] = strings.ReplaceAll(p.Args[1], "--no-warn-rwx-segments", ""), strings.ReplaceAll(p.Args[2], "--no-warn-rwx-segments", "")
	}
	return p.readEnvironment(ctx)
}

// leaveOut takes options out of the linker's.
func (p *Build) leaveOut() error {
	for _, option := range p.without {
		found := false
		for i := 1; i < min(len(p.Args), 3); i++ {
			words := strings.Fields(p.Args[i])
			if rest := slices.DeleteFunc(slices.Clone(words), func(word string) bool { return word == option }); len(rest) < len(words) {
				p.Args[i], found = strings.Join(rest, " "), true
			}
		}
		if !found {
			return host.Hint(fmt.Errorf("link-without: this kernel is not linked with %s", option), "it is linked with %s", strings.TrimSpace(p.Args[1]+" "+p.Args[2]))
		}
	}
	return nil
}

// scriptArgs reads the arguments that make gave link-vmlinux.sh: kbuild keeps
// them in .vmlinux.cmd, from 6.15 on possibly in .vmlinux.unstripped.cmd.
func scriptArgs(build string) ([]string, error) {
	names := []string{".vmlinux.unstripped.cmd", ".vmlinux.cmd"}
	// A tree that went back in history has both: the newer one counts.
	if a, err := os.Stat(filepath.Join(build, names[0])); err == nil {
		if b, err := os.Stat(filepath.Join(build, names[1])); err == nil && b.ModTime().After(a.ModTime()) {
			slices.Reverse(names)
		}
	}
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(build, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		m := linkCommand.FindSubmatch(data)
		if m == nil {
			continue
		}
		args, err := shlex.Split(strings.ReplaceAll(string(m[1]), "$$", "$"))
		if err != nil || len(args) < 3 {
			return nil, fmt.Errorf("%s: the call of link-vmlinux.sh can't be read: %q", filepath.Join(build, name), m[1])
		}
		return args, nil
	}
	return nil, host.Hint(fmt.Errorf("%s: no .vmlinux.cmd that calls link-vmlinux.sh", build), "the build is not finished: run make vmlinux in it")
}

var linkCommand = regexp.MustCompile(`(?m)^(?:saved)?cmd_vmlinux(?:\.unstripped)? := (?:\S+ )?\S*link-vmlinux\.sh ([^;\n]*)`)

// linkVariables are the ones of kbuild's environment that link-vmlinux.sh and
// what it calls need. An allow-list: the environment holds all of the user's.
var linkVariables = map[string]bool{
	"CC": true, "NM": true, "OBJCOPY": true, "CONFIG_SHELL": true, "srctree": true, "objtree": true, "SRCARCH": true,
	"KBUILD_LDS": true, "KBUILD_VMLINUX_LIBS": true, "LINUXINCLUDE": true, "NOSTDINC_FLAGS": true,
	"KBUILD_CPPFLAGS": true, "KBUILD_AFLAGS": true, "KBUILD_AFLAGS_KERNEL": true, "CFLAGS_vmlinux": true,
	"PAHOLE": true, "PAHOLE_FLAGS": true, "RESOLVE_BTFIDS": true,
}

// readEnvironment asks kbuild for the environment of link-vmlinux.sh. The
// target's name ends in _install, which keeps kbuild from bringing its
// configuration up to date: the build is only read.
func (p *Build) readEnvironment(ctx context.Context) error {
	source, err := sourceOf(p.Objtree)
	if err != nil {
		return err
	}
	rule := filepath.Join(p.Dir, "environment.mk")
	if err := replaceFile(rule, []byte(".PHONY: unlucky_install\nunlucky_install: ; @env -0\n"), 0o644); err != nil {
		return err
	}
	build, err := filepath.EvalSymlinks(p.Objtree)
	if err == nil {
		source, err = filepath.EvalSymlinks(source)
	}
	if err != nil {
		return err
	}
	// What the first make of two tells the second: to 6.12 the absolute folders,
	// from 6.13 on objtree.
	env := host.Environment(p.PATH(), "sub_make_done=1", "abs_srctree="+source, "abs_objtree="+build, "objtree=.")
	argv := slices.Concat([]string{"make", "--silent", "--no-print-directory", "-f", filepath.Join(source, "Makefile"), "-f", rule, "ARCH=" + p.Arch.Kernel},
		p.makeArgs(), []string{"unlucky_install"})
	out, err := host.Output(ctx, p.Objtree, env, argv...)
	if err != nil {
		return fmt.Errorf("asking kbuild for its environment: %w", err)
	}
	// The real make would write through links into the build.
	p.Env, p.Environment = host.Environment(p.PATH(), "MAKE=true"), nil
	for _, v := range strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		name, value, _ := strings.Cut(v, "=")
		if name == "PAHOLE_FLAGS" {
			// With several threads it gives other bytes each time.
			v = paholeThreads.ReplaceAllString(v, "$1")
		}
		if name == "KBUILD_LDS" && p.units {
			v = name + "=" + unitScript
		}
		if linkVariables[name] {
			if name == "KBUILD_AFLAGS" { // debug information of kallsyms' table would name the worker's folder
				v = name + "=" + strings.Join(slices.DeleteFunc(strings.Fields(value), asksDebug.MatchString), " ")
			}
			p.Env = append(p.Env, v)
		}
		if !strings.HasPrefix(name, "MAKE") && name != "MFLAGS" {
			p.Environment = append(p.Environment, v)
		}
		if name == "srctree" {
			p.Srctree = value
		}
	}
	return p.hideSymbols()
}

// asksDebug are options of an assembler, or for one, that ask for debug information.
var asksDebug = regexp.MustCompile(`^(-Wa,)?-g`)

var paholeThreads = regexp.MustCompile(`([ =])-j\d*( |$)`)

// replaceFile writes a file atomically unless it holds the same already.
func replaceFile(path string, data []byte, perm os.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	// Beside it: what a killed run leaves goes with the kernel's folder.
	return renameio.WriteFile(path, data, perm, renameio.WithTempDir(filepath.Dir(path)))
}

func FileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Room makes a folder on the disk of the cache, for what must not outlive this
// program. remove removes it; after a kill the next Prepare of this kernel does.
func (p *Build) Room() (dir string, remove func() error, err error) {
	dir, held, err := host.NewRoom(p.Dir)
	if err != nil {
		return "", nil, err
	}
	return dir, func() error { return errors.Join(os.RemoveAll(dir), held.Close()) }, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

package linker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"unlucky/arch"
	"unlucky/host"
	"unlucky/layout"
	"unlucky/linker/kbuild"
	"unlucky/scenarios"
)

// Image is one linked kernel.
type Image struct {
	Path  string // there until Remove, or until the worker is closed
	By    Way    // how it was linked
	Steps Steps

	// Layout is layout.Identity of the addresses that the plan gives, by which two images
	// of a kernel are the same. It is empty where only the image tells: where lld itself
	// pads, before the layout was asked for, for other symbols than the baseline's.
	Layout string
	digest string // where vmlinux is gone once the worker links again

	// Addresses are those of the sections of the baseline's layout, by the
	// image's own symbols; 0 for a section without a function. It is nil for an
	// image that was linked before the layout was asked for, and for one that
	// has other symbols than the baseline.
	Addresses []uint64

	// Inserted is what the linker has added to text for its addresses, where the
	// layout is known.
	Inserted []layout.Inserted

	VMLinux   string // the ELF file with its symbols; of a boot image until the worker links again
	SystemMap string // until the worker links again; empty where one pass of the linker made the image
}

// Steps are the parts of a link, in wall-clock time but where it says CPU time.
type Steps struct {
	Pad      time.Duration `json:"pad"`      // vmlinux.o
	Link     time.Duration `json:"link"`     // delta, lld, or the whole of link-vmlinux.sh; CPU time, as programs run at low priority
	Kallsyms time.Duration `json:"kallsyms"` // addresses into the image
	Image    time.Duration `json:"image"`    // sorted tables, boot image
}

// Digest is the SHA-256 of vmlinux, in hex: it reads the file.
func (i Image) Digest() (string, error) {
	if i.digest != "" {
		return i.digest, nil
	}
	return kbuild.FileDigest(i.VMLinux)
}

// LinkError is a layout that does not link: a property of the layout, not of
// the machine.
type LinkError struct {
	Reason string // in the linker's own words, one line
	Log    string // all that the link printed
}

func (e *LinkError) Error() string { return e.Reason }

// LayoutFault tells whether the linker script or lld itself failed for the
// addresses, which another strategy of padding can avoid: the location
// counter, an assertion (SRSO), or lld dying.
func (e *LinkError) LayoutFault() bool { return layoutFault.MatchString(e.Log) }

var layoutFault = regexp.MustCompile(`unable to move location counter|won't alias|ASSERT|assertion|` + lldDied +
	`|section .* overlaps|out of range|` + inconsistent)

const (
	lldDied      = `PLEASE submit a bug report|Stack dump:|Segmentation fault|Aborted`
	inconsistent = `Inconsistent kallsyms data`
)

// linkerSaid tells a link that failed for the layout from one that failed for
// the machine: a missing tool, memory, a killed process.
var linkerSaid = regexp.MustCompile(`ld\.lld\S*: error|` + lldDied + `|` + inconsistent)

// Remove removes the image. It is called as soon as the image has a verdict.
func (i Image) Remove() error { return os.Remove(i.Path) }

// Link links a plan. The error is a *LinkError if the layout does not link.
func (w *Worker) Link(ctx context.Context, plan layout.Plan) (Image, error) {
	if err := ctx.Err(); err != nil {
		return Image{}, err
	}
	k, due, byScript := w.kernel, false, false
	if k.passOf(kindOf(plan)) != nil {
		n, every := k.links.Add(1), int64(checkEvery)
		due, byScript = n%every == 0, n%every == 0
		if k.linksByDelta(kindOf(plan)) {
			byScript = n%(every*scriptEvery) == 0
		}
	}
	if !due || k.noLLD != nil {
		if image, ok, err := w.byDelta(ctx, plan); ok {
			return image, roomFull(w.dir, err)
		}
	}
	e, err := k.edit(ctx, plan)
	if err != nil {
		return Image{}, err
	}
	begin := time.Now()
	if err := w.takeObject(e); err != nil {
		return Image{}, roomFull(w.dir, fmt.Errorf("padding vmlinux.o in %s: %w", w.dir, err))
	}
	padded := time.Since(begin)
	image, err := w.link(ctx, plan, byScript)
	if f := k.functionsOf(); f != nil && err == nil {
		if image.Layout, err = checkPlaces(f.model, plan, image.Addresses, image.Inserted...); err != nil {
			err = errors.Join(err, image.Remove())
		}
	}
	if err != nil {
		w.clear()
	} else if err = w.proveDelta(ctx, plan, image, due); err != nil {
		err = errors.Join(err, image.Remove())
	}
	image.Steps.Pad = padded
	return image, roomFull(w.dir, err)
}

// clear removes what a link that failed has left in the worker's folder.
func (w *Worker) clear() {
	for _, pattern := range []string{"vmlinux*.tmp*", ".tmp_vmlinux*"} { // lld's half of an image; those before the last
		left, _ := filepath.Glob(filepath.Join(w.dir, pattern))
		for _, path := range left {
			os.Remove(path)
		}
	}
	os.Remove(w.vmlinux())
}

// The first link, which nothing is known of, may take firstLimit, each later
// one shortestLimit and limitFactor times the CPU time of the first: beside
// programs of ordinary priority, two to a CPU, one at low priority gets the
// 140th part of it.
var (
	firstLimit    = time.Hour
	shortestLimit = 10 * time.Minute
)

const limitFactor = 300

func (p *Kernel) linkLimit() time.Duration {
	if took := time.Duration(p.took.Load()); took > 0 {
		return shortestLimit + limitFactor*took
	}
	return firstLimit
}

// machineError is a link that failed for the machine: it says nothing of the
// layout, and another way to link that would fail, too.
type machineError struct{ error }

func (e machineError) Unwrap() error { return e.error }

func isMachine(err error) bool {
	return errors.As(err, new(machineError)) || host.NoSpace(err)
}

// low is the nice value of links: they take what boots leave. Boots have a time
// limit, and a boot and a link on one CPU at the same time are slower than one
// after the other.
const low = 19

// run runs a step of a link in the worker's folder, at low priority but for those
// before the first image, which a person waits for. It runs for limit at most, and adds what it prints to log. It returns the CPU time.
func (w *Worker) run(ctx context.Context, limit time.Duration, env []string, log *bytes.Buffer, argv ...string) (time.Duration, error) {
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	nice := 0
	if w.kernel.linked.Load() {
		nice = low
	}
	took, err := host.RunNice(bounded, nice, w.dir, env, log, argv...)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return took, nil
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case bounded.Err() != nil:
		// Whether it is lld or the machine that hangs can't be told; a verdict
		// would keep this layout from ever being linked again.
		err = host.Hint(fmt.Errorf("%s in %s hangs: ended after %v%s", filepath.Base(stepOf(argv)), w.dir, limit, host.LastLines(log.Bytes(), 4)),
			"the layout has no verdict: run the same again; if it hangs again, leave that seed out")
		return 0, machineError{err}
	case bytes.Contains(log.Bytes(), []byte("No space left on device")):
		return 0, fmt.Errorf("linking in %s: %w", w.dir, syscall.ENOSPC)
	case errors.As(err, &exit) && busError(exit, log.Bytes()):
		return 0, fmt.Errorf("linking in %s: bus error: %w for the image", w.dir, syscall.ENOSPC)
	case errors.As(err, &exit) && killed(exit, log.Bytes()):
		err = host.Hint(fmt.Errorf("%s in %s was killed: %w%s", filepath.Base(stepOf(argv)), w.dir, err, host.LastLines(log.Bytes(), 4)),
			"out of memory, dmesg tells so: try fewer layouts at a time with -j")
		return 0, machineError{err}
	}
	return 0, err
}

// stepOf is the program of a step, for its errors.
func stepOf(argv []string) string {
	for _, word := range argv {
		if strings.HasSuffix(word, "link-vmlinux.sh") {
			return word
		}
	}
	return argv[0]
}

// killed tells a program, or one that a script called, that was ended from
// outside from an lld that died by itself.
func killed(exit *exec.ExitError, log []byte) bool {
	switch signal(exit) {
	case syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGXCPU:
		return true
	}
	return killedLine.Match(log) && !linkerSaid.Match(log)
}

// busError tells an lld that died because the disk is full: it writes to a
// mapped file, for which nothing was put aside. Its own words are those of any
// bug of its.
func busError(exit *exec.ExitError, log []byte) bool {
	return signal(exit) == syscall.SIGBUS || busErrorLine.Match(log)
}

// signal is what ended a program, or the one that a shell ran last: a shell's
// status is then 128 and the signal's number. It is 0 for one that ended by itself.
func signal(exit *exec.ExitError) syscall.Signal {
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return status.Signal()
	}
	return syscall.Signal(max(exit.ExitCode()-128, 0))
}

var (
	killedLine   = regexp.MustCompile(`(?m)\bKilled( |$)`) // what shells say
	busErrorLine = regexp.MustCompile(`(?m)\bBus error( |$)`)
)

// script links what stands in the worker's folder by the kernel's own
// link-vmlinux.sh, the whole of it, and returns the CPU time of that.
func (w *Worker) script(ctx context.Context, flag *uint32, trace *bytes.Buffer, extra ...string) (time.Duration, error) {
	p := w.kernel
	env := p.Env
	if flag != nil {
		env = append(env[:len(env):len(env)], fmt.Sprint("UNLUCKY_SEED=", *flag))
	}
	args := append([]string(nil), p.Args...)
	args[0] += " --threads=1" // as fast, and leaves the other CPUs to the other workers
	args[2] = strings.Join(append([]string{fixBuildID(args[2])}, extra...), " ")
	argv, log := []string{"sh"}, new(bytes.Buffer)
	if trace != nil {
		argv, log = []string{"sh", "-x"}, trace
	}
	argv = append(append(argv, p.Script()), args...)
	run := func() (time.Duration, error) {
		log.Reset()
		os.Remove(w.vmlinux()) // an old one is not to be taken for the new
		return w.run(ctx, p.linkLimit(), env, log, argv...)
	}
	took, err := run()
	if err != nil && bytes.Contains(log.Bytes(), []byte(inconsistent)) {
		env = append(env[:len(env):len(env)], "KALLSYMS_EXTRA_PASS=1") // as the script advises
		took, err = run()
	}
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case err == nil:
		return took, w.checkImage()
	case isMachine(err):
		return 0, err
	case !linkerSaid.Match(log.Bytes()):
		return 0, fmt.Errorf("link-vmlinux.sh: %w%s", err, host.LastLines(log.Bytes(), 8))
	}
	return 0, &LinkError{linkReason(log.Bytes(), err), log.String()}
}

// checkImage checks that what a linker that ended well has left is whole.
func (w *Worker) checkImage() error {
	f, err := openELF(w.vmlinux())
	if err != nil {
		return fmt.Errorf("the linker left no whole image: %w", err)
	}
	return f.Close()
}

// fixBuildID makes the build ID a constant: lld computes it from the image as
// it is before kallsyms' addresses can be put in.
func fixBuildID(flags string) string {
	return buildID.ReplaceAllStringFunc(flags, func(flag string) string {
		if flag == "--build-id=none" {
			return flag
		}
		return "--build-id=0x" + hex.EncodeToString([]byte("unlucky: no build ID"))
	})
}

var buildID = regexp.MustCompile(`--build-id(=\S+)?`)

func roomFull(dir string, err error) error {
	if err != nil && host.NoSpace(err) {
		what := "unlucky clean removes prepared kernels"
		if strings.HasPrefix(dir, host.MemoryDir) {
			what = "or try fewer layouts at a time with -j"
		}
		err = host.Hint(err, "make room there; %s", what)
	}
	return err
}

// vmlinux is what was linked last.
func (w *Worker) vmlinux() string { return filepath.Join(w.dir, w.kernel.output()) }

// output is the image that the script writes.
func (p *Kernel) output() string {
	if p.packed != nil {
		return p.packed.Output
	}
	if len(p.Args) > 3 {
		return p.Args[3] // from 6.15 on, vmlinux or vmlinux.unstripped
	}
	return arch.VMLinux
}

// linkReason is the first error of a failed link, in one line.
func linkReason(log []byte, err error) string {
	lines := bufio.NewScanner(bytes.NewReader(log))
	var last string
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if strings.Contains(line, "error:") || strings.Contains(line, "PLEASE submit a bug report") ||
			strings.Contains(line, "Inconsistent kallsyms data") {
			return line
		}
		if line != "" {
			last = line
		}
	}
	return fmt.Sprintf("%s (%v)", last, err)
}

// minSections is the number of input sections below which padding them
// says nothing: a kernel without sections per function has one.
const minSections = 100

// Layout is the baseline's: its input sections in output order. The first
// call links it.
func (p *Kernel) Layout(ctx context.Context) ([]layout.Section, error) {
	layout, err := p.baseline(ctx)
	if err != nil {
		return nil, err
	}
	n := 0
	for _, s := range layout {
		if s.Moves {
			n++
		}
	}
	switch {
	case n >= minSections:
	case p.Sections == scenarios.Data:
		return nil, host.Hint(fmt.Errorf("this kernel's link sees %d data input sections: there is nothing to pad between", n),
			"it was compiled without a section for each object: LTO_CLANG_THIN gives them")
	default:
		return nil, host.Hint(fmt.Errorf("this kernel's link sees %d text input sections: there is nothing to pad between", n),
			"it was compiled without a section for each function: let the program build it (-linux), or make it again with CFLAGS_KERNEL=-ffunction-sections or with LTO_CLANG_THIN")
	}
	return layout, nil
}

// baseline links the baseline, once, for what all other links need: its layout
// and how one pass is made.
func (p *Kernel) baseline(ctx context.Context) ([]layout.Section, error) {
	p.layoutMu.Lock()
	defer p.layoutMu.Unlock()
	if p.layout != nil {
		return p.layout, nil
	}
	w, err := p.NewWorker()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	var trace bytes.Buffer
	err = w.takeObject(edit{})
	if err == nil && p.packed != nil {
		err = w.packedBaseline(ctx)
	} else if err == nil {
		var took time.Duration
		took, err = w.script(ctx, nil, &trace, "-Map=layout.map")
		p.took.Store(int64(took))
	}
	if err != nil {
		return nil, roomFull(w.dir, fmt.Errorf("linking the baseline: %w", err))
	}
	linkMap, err := os.Open(filepath.Join(w.dir, "layout.map"))
	if errors.Is(err, os.ErrNotExist) { // CONFIG_VMLINUX_MAP has the last word
		linkMap, err = os.Open(filepath.Join(w.dir, p.output()+".map"))
	}
	if err != nil {
		return nil, err
	}
	defer linkMap.Close()
	image, err := openELF(filepath.Join(w.dir, p.output()))
	if err != nil {
		return nil, err
	}
	defer image.Close()
	sections, err := readLayout(linkMap, "vmlinux.o", image.File, p.Sections)
	if err != nil {
		return nil, err
	}
	for i, s := range sections {
		var ok bool
		if sections[i].Index, ok = p.object.index[s.Name]; !ok && s.Name != "" {
			return nil, fmt.Errorf("the link map has a section %s, which vmlinux.o has not", s.Name)
		}
	}
	layout.SetGroups(sections)
	if orphan := orphan(sections); orphan != "" {
		return nil, host.Hint(fmt.Errorf("the linker script does not take %s: it is an output section of its own, behind all others, and such a kernel does not run", orphan),
			"its script takes a section for each function only with LTO or dead-code elimination: let the program build this kernel (-linux)")
	}
	if p.functions, err = findFunctions(image.File, sections); err != nil {
		return nil, err
	}
	own := make([]uint64, len(sections))
	for i, s := range sections {
		own[i] = s.Address
	}
	if _, err := checkPlaces(p.functions.model, layout.Plan{}, own, p.functions.table.inserted...); err != nil {
		return nil, fmt.Errorf("the baseline's link map: %w", err)
	}
	if p.packed == nil {
		w.learnOnePass(trace.Bytes())
	}
	p.layout = sections
	return sections, nil
}

// functionsOf are the kernel's, nil before its layout was asked for.
func (p *Kernel) functionsOf() *functions {
	p.layoutMu.Lock()
	defer p.layoutMu.Unlock()
	return p.functions
}

// Tables counts the arrays that the linker builds between a __start_ and a
// __stop_ symbol. Padding inside one breaks a correct program, so padding
// every section of an image that has some is not to be believed.
func (p *Kernel) Tables() (int, error) {
	symbols, err := os.ReadFile(filepath.Join(p.Objtree, "System.map"))
	if err != nil {
		return 0, err
	}
	start := map[string]bool{}
	for _, m := range tableSymbol.FindAllSubmatch(symbols, -1) {
		start[string(m[1])+string(m[2])] = true
	}
	n := 0
	for name := range start {
		if rest, ok := strings.CutPrefix(name, "start_"); ok && start["stop_"+rest] {
			n++
		}
	}
	return n, nil
}

var tableSymbol = regexp.MustCompile(`(?m) __(start_|stop_)(\S+)$`)

// orphan is an output section that is a function's own, which the linker makes of an
// input section that its script does not take; empty where there is none.
func orphan(sections []layout.Section) string {
	for _, s := range sections {
		if s.Name != "" && s.Output == s.Name && layout.PerFunction(s.Output) {
			return s.Output
		}
	}
	return ""
}

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"unlucky/fuzz"
	"unlucky/linker"
	"unlucky/qemu"
	"unlucky/scenarios"
	"unlucky/seeds"
)

// cacheLimit keeps prepared kernels from piling up: room for some ten small
// kernels, or four of a distribution's size.
const cacheLimit = 20 << 30

func sweep(ctx context.Context, args []string, _ io.Reader, out io.Writer) error {
	err := doSweep(ctx, args, out)
	if slices.ContainsFunc(args, asksBisect) && err != nil && !errors.Is(err, flag.ErrHelp) && !errors.As(err, new(exit)) {
		// Before anything was built: git must take it neither for bad nor for "skip".
		if errors.As(err, &usageError{}) {
			err = commandError{err, "sweep"}
		}
		return because(err, exitEndBisect, newScreen(os.Stderr))
	}
	return err
}

// asksBisect tells whether an argument is -bisect, in any way that package flag
// takes it; the flags may be too wrong to be parsed.
func asksBisect(arg string) bool {
	name, value, given := strings.Cut(arg, "=")
	on, err := strconv.ParseBool(value)
	return (name == "-bisect" || name == "--bisect") && (!given || on || err != nil)
}

func doSweep(ctx context.Context, args []string, out io.Writer) error {
	f := flag.NewFlagSet("sweep", flag.ContinueOnError)
	o := overrides(f)
	o.packed(f)
	var (
		rangeFlag = f.String("seeds", "1:1000", "first and last `seed`, each from 0 to 4294967295")
		workers   = f.Int("j", 0, "`layouts` booted at the same time, while as many are linked (default: as many as there are CPUs for, and memory; or guest.slots)")
		strategy  = f.String("strategy", "auto", "how a seed becomes a layout: `auto, lld, text, cover or shuffle`")
		limit     = f.Duration("for", 0, "stop after this `time`, such as 8h")
		stopAfter = f.Int("stop-after", 0, "stop after `N` finds, in the order of seeds")
		dir       = f.String("o", "unlucky.out", "`folder` of the results")
		shard     = f.String("shard", "", "try only each N-th seed, from the I-th on: `I/N`, such as 3/8; shards on any machines share -o (default: what a Slurm array or a Kubernetes Indexed Job says)")
		command   = f.String("exec", "", "shell `command` to run at the first find; UNLUCKY_FILE and UNLUCKY_TITLE tell it what")
		fail      = f.Bool("fail", false, "exit with status 3 if an unlucky layout is found")
		bisect    = f.Bool("bisect", false, "for git bisect run: exit 0 for none, 3 for an unlucky layout, 125 if it can't be told; the results of each commit are in a folder named by its vmlinux.o")
		full      = f.Bool("full-script", false, "link each layout by the whole link-vmlinux.sh: slower, to compare with")
		asJSON    = f.Bool("json", false, "print the report as JSON")
	)
	rest, err := parse(f, args, out, "sweep SCENARIO [flags]", 0, 1)
	if err != nil {
		return err
	}
	switch {
	case o.kernel == "" && len(rest) == 0:
		return usageError{errors.New("usage: unlucky sweep SCENARIO [flags], or unlucky sweep -kernel FILE [flags]")}
	case o.kernel != "" && len(rest) > 0:
		return usageError{fmt.Errorf("-kernel %s has its scenario in it: leave %s out", o.kernel, rest[0])}
	case o.kernel != "" && *full:
		return usageError{errors.New("-kernel and -full-script exclude each other")}
	}
	s := &fuzz.Sweep{Dir: *dir, Workers: *workers, StopAfter: *stopAfter, For: *limit}
	if s.First, s.Last, err = parseSeeds(*rangeFlag); err != nil {
		return usageError{err}
	}
	if s.Strategy, err = fuzz.ParseStrategy(*strategy); err != nil {
		return usageError{err}
	}
	if *workers < 0 || *stopAfter < 0 || *limit < 0 {
		return usageError{errors.New("-j, -stop-after and -for take no negative value")}
	}
	if *bisect && *shard != "" {
		return usageError{errors.New("-bisect and -shard exclude each other")}
	}
	by := ""
	if !*bisect { // which is never part of an array
		if s.Shard, by, err = findShard(*shard, os.Getenv); err != nil {
			return usageError{err}
		}
	}
	if *fail && *bisect {
		return usageError{errors.New("-fail and -bisect exclude each other")}
	}
	scr := newScreen(os.Stderr)
	if by != "" {
		scr.note("shard %d of %d, by %s", s.Shard.Index, s.Shard.Count, by)
	}
	var scenario scenarios.Scenario // with -kernel, its own
	if o.kernel == "" {
		if scenario, err = o.load(rest); err != nil {
			return err
		}
	}
	if *bisect && o.kernel == "" {
		if err := linker.Check(ctx, scenario.Kernel); err != nil {
			return err // no other commit fares better
		}
	}
	report, err := runSweep(ctx, s, o, scenario, *command, *bisect, *full, scr)
	scr.done()
	if report != nil {
		if *asJSON {
			err = errors.Join(err, json.NewEncoder(out).Encode(report))
		} else {
			printReport(out, report)
			printNext(out, report, s, o.again())
		}
	}
	unlucky := report != nil && (report.Baseline.Found || report.Finds() > 0)
	if *bisect && report != nil && report.Idle && s.Saved.Scenario.Verdict.Crash.Regexp == nil {
		unlucky = false // all fail alike, and nothing says that it is the bug
	}
	switch {
	case unlucky && (*fail || *bisect):
		return because(err, exitNo, scr)
	case err == nil && ctx.Err() != nil:
		scr.note("interrupted; the same command continues here")
		return exit(exitInterrupted) // above 127: ends a bisection
	case *bisect && (err != nil || report.Count(qemu.Pass) == 0):
		return because(err, exitCannotTell, scr)
	case err == nil && report.Idle:
		return exit(exitFailed)
	}
	return err
}

// because prints an error, if there is one, and gives the exit status.
func because(err error, code exit, scr *screen) error {
	status(err, scr)
	return code
}

func runSweep(ctx context.Context, s *fuzz.Sweep, o *override, scenario scenarios.Scenario, command string, bisect, full bool, scr *screen) (*fuzz.Report, error) {
	b, err := o.prepare(ctx, scenario, scr)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	b.FullScript = full
	if err := b.sweeps(s, scr); err != nil {
		return nil, err
	}
	if bisect { // each commit is another kernel, with results of its own
		s.Dir = filepath.Join(s.Dir, b.Digest[:12])
	}
	if command != "" {
		s.Found = func(path string) {
			output, err := notify(ctx, command, path)
			if text := strings.TrimSpace(string(output)); text != "" {
				scr.note("-exec: %s", text)
			}
			if err != nil {
				scr.note("warning: -exec: %v", err)
			}
		}
	}
	scr.note("sweeping seeds %d to %d, %d at a time; ^C stops, and the same command goes on", s.First, s.Last, s.Workers)
	report, err := s.Run(ctx)
	if failed := new(fuzz.InfraError); errors.As(err, &failed) && failed.KVM() && b.guest.Machine.Accel == "kvm" {
		err = &linker.HintError{Err: err, Hint: "the same command goes on once KVM works; without KVM begin anew, with -accel tcg and another -o"}
	}
	return report, err
}

// sweeps gives a sweep its kernel and guest, and has the screen show it.
func (b *rig) sweeps(s *fuzz.Sweep, scr *screen) (err error) {
	if s.Workers == 0 {
		if s.Workers, err = b.workers(scr); err != nil {
			return err
		}
	}
	s.Kernel, s.Guest, s.Saved = b, b.guest, b.saved
	s.Note = scr.note
	begin := time.Now()
	s.Step = func(t fuzz.Tally) {
		text := fmt.Sprintf("%d unlucky so far", t.Unlucky)
		if t.Tried > 0 {
			each := time.Since(begin) / time.Duration(t.Tried)
			text += fmt.Sprintf(", %.0f layouts an hour, %v left", time.Hour.Seconds()/each.Seconds(),
				(each * time.Duration(t.Total-t.Done)).Round(time.Second))
		} else {
			begin = time.Now() // the baseline's time is not the layouts'
		}
		if t.Coverage != nil {
			var moduli, shares []string
			for _, r := range t.Coverage.Residues {
				moduli = append(moduli, fmt.Sprint(r.Modulus))
				shares = append(shares, fmt.Sprint(100*r.Seen/r.Of))
			}
			text += fmt.Sprintf(", mod %s %s %%", strings.Join(moduli, "/"), strings.Join(shares, "/"))
		}
		scr.tally(t.Done, t.Total, text)
	}
	s.Recall = scr.later("counting the coverage of earlier layouts")
	return nil
}

// notify runs the user's command for a saved seed.
func notify(ctx context.Context, command, path string) (output []byte, err error) {
	saved, err := seeds.Read(path)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Env = append(os.Environ(), "UNLUCKY_FILE="+path, "UNLUCKY_TITLE="+saved.Title)
	return cmd.CombinedOutput()
}

// parseSeeds reads FIRST:LAST or one seed.
func parseSeeds(text string) (first, last uint32, err error) {
	from, to, ok := strings.Cut(text, ":")
	if !ok {
		to = from
	}
	a, err1 := strconv.ParseUint(from, 10, 32)
	b, err2 := strconv.ParseUint(to, 10, 32)
	switch {
	case err1 != nil || err2 != nil:
		return 0, 0, fmt.Errorf("-seeds %s: want FIRST:LAST, each from 0 to 4294967295", text)
	case a > b:
		return 0, 0, fmt.Errorf("-seeds %s: the first seed is behind the last; did you mean %d:%d?", text, b, a)
	}
	return uint32(a), uint32(b), nil
}

// override is what the command line changes in a scenario.
type override struct {
	linux, build, kernel, append, cpu, accel string
	smp                                      int
	qemuArgs                                 []string
	trust                                    bool                    // a seed file
	mend                                     func(*scenarios.Kernel) // once that is trusted; nil but for verify
}

func overrides(f *flag.FlagSet) *override {
	o := new(override)
	o.source(f)
	o.guest(f)
	return o
}

// source adds the flags that change the kernel, not the guest.
func (o *override) source(f *flag.FlagSet) {
	f.StringVar(&o.linux, "linux", "", "kernel `tree` to build instead of the scenario's; it is not written to")
	f.StringVar(&o.build, "build", "", "finished kernel build `folder` to use instead; it is not written to")
}

// kernelFlags are those of source as they were given, quoted.
func (o *override) kernelFlags() string {
	switch {
	case o.linux != "":
		return " -linux " + qemu.Quote([]string{o.linux})
	case o.build != "":
		return " -build " + qemu.Quote([]string{o.build})
	}
	return ""
}

// guest adds the flags that change the guest, not the kernel.
func (o *override) guest(f *flag.FlagSet) {
	f.StringVar(&o.append, "append", "", "`arguments` to add to the kernel command line")
	f.StringVar(&o.cpu, "cpu", "", "QEMU's CPU `model`")
	f.IntVar(&o.smp, "smp", 0, "`CPUs` of the guest")
	f.StringVar(&o.accel, "accel", "", "`auto, kvm or tcg`")
	f.Func("qemu-arg", "further `argument` of QEMU; give it once for each", func(a string) error {
		o.qemuArgs = append(o.qemuArgs, a)
		return nil
	})
}

// load reads the scenario that the first of some arguments names, or else the
// given one.
func (o *override) load(args []string, otherwise ...string) (scenarios.Scenario, error) {
	s, err := scenarios.Load(append(args, otherwise...)[0])
	if err == nil {
		err = o.apply(&s)
	}
	return s, err
}

func (o *override) apply(s *scenarios.Scenario) error {
	if o.linux != "" && o.build != "" {
		return usageError{errors.New("-linux and -build exclude each other")}
	}
	if o.kernel != "" && o.linux+o.build != "" {
		return usageError{errors.New("-kernel excludes -linux and -build")}
	}
	for flag, to := range map[*string]*string{&o.linux: &s.Kernel.Dir, &o.build: &s.Kernel.Build} {
		if *flag == "" {
			continue
		}
		dir, err := filepath.Abs(*flag)
		if err != nil {
			return err
		}
		s.Kernel.Package, s.Kernel.Dir, s.Kernel.Build = "", "", ""
		*to = dir
	}
	if s.Kernel.Build != "" { // it is what it is
		s.Kernel.Patches, s.Kernel.Config, s.Kernel.Set, s.Kernel.Try = nil, "", nil, nil
	}
	g := &s.Guest
	if g.Command != "" && (o.cpu != "" || o.smp != 0 || o.accel != "" || o.qemuArgs != nil) {
		return usageError{fmt.Errorf("-cpu, -smp, -accel and -qemu-arg are QEMU's, and %s is booted by guest.command: %s", s.Name, g.Command)}
	}
	if o.append != "" {
		g.Append = strings.TrimSpace(g.Append + " " + o.append)
	}
	if o.cpu != "" {
		g.CPU = o.cpu
	}
	if o.smp < 0 {
		return usageError{fmt.Errorf("-smp %d: a guest has at least one CPU", o.smp)}
	}
	if o.smp > 0 {
		g.CPUs = o.smp
	}
	switch o.accel {
	case "":
	case "auto", "kvm", "tcg":
		g.Accel = o.accel
	default:
		return usageError{fmt.Errorf("-accel %s: there are auto, kvm and tcg", o.accel)}
	}
	g.QEMUArgs = append(g.QEMUArgs[:len(g.QEMUArgs):len(g.QEMUArgs)], o.qemuArgs...)
	return nil
}

// rig is all that is needed to link and boot layouts of one scenario.
type rig struct {
	*linker.Kernel // nil for a bundle, which is only booted
	guest          *fuzz.Guest
	saved          seeds.File   // what every saved seed has in common
	free           func() error // removes the initrd
}

// Linker makes a rig a fuzz.Kernel.
func (b *rig) Linker() (fuzz.Linker, error) { return b.NewWorker() }

func (b *rig) Close() error {
	err := b.free()
	if b.Kernel != nil {
		err = errors.Join(err, b.Kernel.Close())
	}
	return err
}

// qemuMemory is what QEMU takes beside the guest's memory: 84 MB were measured.
const qemuMemory = 96 << 20

// workers is how many layouts are tried at the same time, unless it is given:
// as many as there are CPUs for, and memory.
func (b *rig) workers(scr *screen) (int, error) {
	m := b.guest.Machine
	if m.Program != nil {
		return b.saved.Scenario.Guest.Slots, nil
	}
	cpus := max(1, runtime.NumCPU()/max(1, m.CPUs))
	each, err := b.WorkerMemory()
	if err != nil {
		return 0, err
	}
	each += uint64(m.MemoryMiB)<<20 + qemuMemory
	fit := max(1, int(linker.AvailableMemory()/each))
	if fit < cpus {
		scr.note("memory for %d layouts at a time, of %s each; -j overrules", fit, humanize.IBytes(each))
	}
	return min(cpus, fit), nil
}

// prepare makes the kernel and the initrd of a scenario.
func prepare(ctx context.Context, s scenarios.Scenario, scr *screen) (_ *rig, err error) {
	if _, err := fuzz.NewGuest(s, "").Machine.Version(ctx); err != nil {
		return nil, err // before minutes have gone into a build
	}
	initrd, err := initrdOf(s.Guest)
	if err != nil {
		return nil, err
	}
	if !linker.Prepared(ctx, cacheDir(), s.Kernel) && linker.Check(ctx, s.Kernel) == nil {
		scr.note("preparing the kernel in %s", cacheDir())
	}
	kernel, err := linker.Prepare(ctx, cacheDir(), s.Kernel, scr.progress)
	scr.done()
	if err != nil {
		return nil, err
	}
	if p := kernel.Package; p.Name != "" {
		if p.Suite != "" || p.Name != s.Kernel.Package {
			scr.note("kernel: %s, %s", p, p.From())
		}
		s.Kernel.Package = p.String() // for a replay elsewhere
	}
	return newRig(ctx, kernel, s, initrd, scr)
}

// newRig makes a rig of a kernel, which it closes if it fails.
func newRig(ctx context.Context, kernel *linker.Kernel, s scenarios.Scenario, initrd []byte, scr *screen) (_ *rig, err error) {
	version, err := fuzz.NewGuest(s, "").Machine.Version(ctx)
	if err != nil {
		return nil, errors.Join(err, kernel.Close())
	}
	removed, err := linker.Clean(cacheDir(), cacheLimit)
	for _, k := range removed {
		scr.note("removed %s (%s), the least recently used prepared kernel", k.Dir, humanize.IBytes(uint64(k.Bytes)))
	}
	if err != nil {
		return nil, errors.Join(err, kernel.Close())
	}
	kernel.Note = scr.note
	dir, free, err := kernel.Room()
	if err != nil {
		return nil, errors.Join(err, kernel.Close())
	}
	b := &rig{Kernel: kernel, free: free}
	path := filepath.Join(dir, "initrd")
	if err := os.WriteFile(path, initrd, 0o644); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	b.guest = fuzz.NewGuest(s, path)
	sum := sha256.Sum256(initrd)
	b.saved = seeds.File{
		Scenario: s,
		Digests:  seeds.Digests{Object: kernel.Digest, Initrd: hex.EncodeToString(sum[:])},
		Tools:    seeds.Tools{Clang: kernel.Clang, LLD: kernel.LLD, QEMU: version},
	}
	return b, nil
}

// prepareSaved makes what a saved layout was booted with, with what the command
// line changes in that. path is the seed file's, for messages.
func prepareSaved(ctx context.Context, path string, saved seeds.File, o *override, scr *screen) (_ *rig, err error) {
	s := saved.Scenario
	s.Guest.Accel = saved.Accel
	if err := o.apply(&s); err != nil {
		return nil, err
	}
	if err := o.checkTrust(ctx, path, saved.Scenario, s); err != nil {
		return nil, err
	}
	if o.mend != nil {
		o.mend(&s.Kernel)
	}
	var b *rig
	if o.kernel != "" {
		b, err = o.open(ctx, &s, scr)
	} else {
		b, err = prepare(ctx, s, scr)
	}
	if err != nil {
		return nil, err
	}
	if err := b.accelerate(o.accel, scr); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// advise says what may help where QEMU failed under KVM.
func (b *rig) advise(err error) error {
	if failed := new(fuzz.InfraError); errors.As(err, &failed) && failed.KVM() && b.guest.Machine.Accel == "kvm" {
		return &linker.HintError{Err: err, Hint: "give -accel tcg if KVM does not work here"}
	}
	return err
}

// accelerate settles the accelerator for a saved layout, unless it was given.
// The baseline decided between KVM and TCG; this image may be silent on both.
func (b *rig) accelerate(given string, scr *screen) error {
	accel := b.guest.Machine.Accel
	if accel == qemu.ByProgram {
		return nil
	}
	if err := qemu.KVM(); accel != "tcg" && err != nil {
		if given == "kvm" {
			return err
		}
		scr.note("accelerator tcg: %v", err)
		accel = "tcg"
	} else if accel == "auto" {
		accel = "kvm"
	}
	b.guest.Accelerate(accel, scr.note)
	return nil
}

// initrdOf is the user space of a guest. A compressed cpio is handed over
// plain: a small kernel knows no compression. It is empty where a command has a user
// space of its own.
func initrdOf(g scenarios.Guest) ([]byte, error) {
	if g.Init == "" && g.Rootfs == "" {
		return nil, nil
	}
	if g.Rootfs != "" {
		return qemu.ReadCpio(g.Rootfs)
	}
	busybox, err := qemu.FindBusybox()
	if err != nil {
		return nil, err
	}
	return qemu.Initrd(busybox, g.Init)
}

// printReport prints what a sweep has found, as one would put it into a mail.
func printReport(out io.Writer, r *fuzz.Report) {
	var b bytes.Buffer
	shard := ""
	if !r.Shard.Whole() {
		shard = fmt.Sprintf(", shard %s", r.Shard)
	}
	fmt.Fprintf(&b, "%s%s: %d layouts of vmlinux.o %.12s, strategy %s, lld %s, %s\n\n",
		r.Scenario, shard, len(r.Layouts), r.Object, r.Strategy, r.LLD, qemu.Named(r.QEMU, r.Accel))
	switch {
	case r.Baseline.Kind == qemu.Pass:
		fmt.Fprintf(&b, "  %-10s %s\n", "baseline", "lucky: it passes")
	case r.Baseline.Found:
		fmt.Fprintf(&b, "  %-10s unlucky: %s; so the seeds that pass are the news\n", "baseline", r.Baseline.Title)
	default:
		fmt.Fprintf(&b, "  %-10s fails: %s\n", "baseline", r.Baseline.Title)
	}
	others := len(r.Layouts) - r.Count(qemu.Pass) - r.Count(qemu.LinkFailed) - r.Count(qemu.Duplicate) - r.Finds()
	for _, row := range []struct {
		name string
		n    int
	}{
		{"passed", r.Count(qemu.Pass)}, {"unlucky", r.Finds()}, {"other", others}, {"no link", r.Count(qemu.LinkFailed)},
		{"duplicate", r.Count(qemu.Duplicate)},
	} {
		if row.n > 0 || row.name == "passed" || row.name == "unlucky" {
			fmt.Fprintf(&b, "  %-10s %d\n", row.name, row.n)
		}
	}
	if r.Left > 0 {
		fmt.Fprintf(&b, "  %-10s %d, as the sweep ended early\n", "not tried", r.Left)
	}
	if r.Beyond > 0 {
		fmt.Fprintf(&b, "  %-10s %d more were tried, and saved, behind the last that counts\n", "beyond", r.Beyond)
	}
	printFindings(&b, "unlucky layouts by title", r.Unlucky(), r.Dir)
	printFindings(&b, "crashes other than the one looked for", r.Others(), r.Dir)
	for _, list := range []struct {
		head string
		kind qemu.Kind
	}{{"layouts that do not link", qemu.LinkFailed}, {"seeds that give a layout twice, counted once", qemu.Duplicate}} {
		printList(&b, list.head, r.Layouts, func(l seeds.Record) (string, bool) {
			return fmt.Sprintf("seed %s: %s", l.Layout, l.Note), l.Kind == list.kind
		})
	}
	printList(&b, "twins: layouts that pass, to compare with", r.Layouts, func(l seeds.Record) (string, bool) {
		return filepath.Join(r.Dir, l.Path), l.Kind == qemu.Pass && l.Path != ""
	})
	if r.Coverage != nil {
		fmt.Fprintln(&b)
		printCoverage(&b, *r.Coverage)
	}
	for _, doubt := range r.Doubts {
		fmt.Fprintf(&b, "\n%s\n", doubt)
	}
	if r.Tried > 0 && r.Count(qemu.LinkFailed) < len(r.Layouts) {
		fmt.Fprintf(&b, "\n%d layouts in %v: %.0f an hour\n", r.Tried, r.Elapsed.Round(time.Second), r.PerHour())
	}
	io.WriteString(out, printable(b.String()))
}

// printNext prints what to type after a sweep.
func printNext(out io.Writer, r *fuzz.Report, s *fuzz.Sweep, again string) {
	var b bytes.Buffer
	if r.Left > 0 {
		how := "the same command goes on with them"
		if s.StopAfter > 0 && r.Finds() >= s.StopAfter {
			how = "the same command without -stop-after goes on with them"
		}
		fmt.Fprintf(&b, "\n%d of %d layouts were not tried: %s\n", r.Left, r.Left+len(r.Layouts)+r.Beyond, how)
	}
	all := append(slices.Clone(r.Layouts), r.Baseline) // a seed rather than the baseline
	if i := slices.IndexFunc(all, func(l seeds.Record) bool { return l.Found && l.Path != "" }); i >= 0 {
		path := filepath.Join(r.Dir, all[i].Path)
		again := trustFlag(s.Saved.Scenario) + again
		fmt.Fprintf(&b, "\nnext, for example:\n  unlucky replay %s%s\n", path, again)
		if passed := r.Baseline.Kind == qemu.Pass || r.Count(qemu.Pass) > 0; passed && r.Strategy != fuzz.LLD {
			fmt.Fprintf(&b, "  unlucky minimize %s%s\n", path, again)
		}
		fmt.Fprintf(&b, "  unlucky report %s\n", r.Dir)
	} else if r.Left == 0 && r.Doubts == nil && s.Last < math.MaxUint32 {
		next := uint64(s.Last) + 1
		fmt.Fprintf(&b, "\nnothing unlucky found; next, for example, the same with:\n  -seeds %d:%d\n", next, min(next+999, math.MaxUint32))
	}
	if !s.Shard.Whole() {
		fmt.Fprintf(&b, "\nwhat all shards have found so far:\n  unlucky merge %s\n", r.Dir)
	}
	io.WriteString(out, printable(b.String()))
}

// printFindings prints the files of each title, in one line that a shell
// expands, and the rates of those that did not show it in every boot.
func printFindings(out io.Writer, heading string, findings []fuzz.Finding, dir string) {
	if len(findings) == 0 {
		return
	}
	fmt.Fprintf(out, "\n%s:\n", heading)
	for _, f := range findings {
		var flaky []string
		fmt.Fprintf(out, "  %4d  %s\n", len(f.Layouts), f.Title)
		for rest := f.Layouts; len(rest) > 0; {
			folder := filepath.Dir(rest[0].Path)
			n := slices.IndexFunc(rest, func(l seeds.Record) bool { return filepath.Dir(l.Path) != folder })
			if n < 0 {
				n = len(rest)
			}
			var names []string
			for _, l := range rest[:n] {
				names = append(names, l.Layout.String())
				if l.Crashes < l.Boots {
					flaky = append(flaky, fmt.Sprintf("%s in %d of %d boots", l.Layout, l.Crashes, l.Boots))
				}
			}
			files := strings.Join(names, ",")
			if len(names) > 1 {
				files = "{" + files + "}"
			}
			path := filepath.Join(dir, folder, files+".yaml")
			if rest[0].Path == "" {
				path = "the baseline, which the first shard saves"
			}
			fmt.Fprintf(out, "        %s\n", path)
			rest = rest[n:]
		}
		if flaky != nil {
			fmt.Fprintf(out, "        flaky: %s\n", strings.Join(flaky, ", "))
		}
	}
}

func printList(out io.Writer, heading string, layouts []seeds.Record, line func(seeds.Record) (string, bool)) {
	for _, l := range layouts {
		text, ok := line(l)
		if !ok {
			continue
		}
		if heading != "" {
			fmt.Fprintf(out, "\n%s:\n", heading)
			heading = ""
		}
		fmt.Fprintf(out, "  %s\n", text)
	}
}

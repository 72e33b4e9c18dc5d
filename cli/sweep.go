package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"unlucky/fuzz"
	"unlucky/fuzz/evidence"
	"unlucky/host"
	"unlucky/layout"
	"unlucky/linker"
	"unlucky/linker/kbuild"
	"unlucky/qemu"
	"unlucky/report"
	"unlucky/scenarios"
	"unlucky/seeds"
)

// bisected is what a sweep ends with whose arguments were args. Where -bisect is one
// of them, git must take an error before anything was built neither for bad nor for
// "skip".
func bisected(args []string, err error) error {
	if err == nil || !slices.ContainsFunc(args, asksBisect) || errors.As(err, new(exit)) {
		return err
	}
	return because(err, exitEndBisect, newScreen(os.Stderr))
}

// asksBisect tells whether an argument is -bisect, in any way that package flag
// takes it; the flags may be too wrong to be parsed.
func asksBisect(arg string) bool {
	name, value, given := strings.Cut(arg, "=")
	on, err := strconv.ParseBool(value)
	return (name == "-bisect" || name == "--bisect") && (!given || on || err != nil)
}

func sweep(f *flag.FlagSet) *command {
	o := newSetup(f)
	o.packed(f)
	o.moving(f)
	var (
		rangeFlag = f.String("seeds", "1:1000", "first and last `seed`, each from 0 to 4294967295")
		workers   = f.Int("j", 0, "`layouts` booted at the same time, while as many are linked (default: as many as there are CPUs for, and memory; or guest.slots)")
		strategy  = f.String("strategy", "auto", "how a seed becomes a layout: `auto, lld, text, cover or shuffle`")
		limit     = f.Duration("for", 0, "stop after this `time`, such as 8h")
		stopAfter = f.Int("stop-after", 0, "stop after `N` finds, in the order of seeds")
		dir       = f.String("o", "unlucky.out", "`folder` of the results")
		shard     = f.String("shard", "", "try only each N-th seed, from the I-th on: `I/N`, such as 3/8; shards on any machines share -o (default: what a Slurm array or a Kubernetes Indexed Job says)")
		notice    = f.String("exec", "", "shell `command` to run at the first find; UNLUCKY_FILE and UNLUCKY_TITLE tell it what")
		memory    = f.Bool("autopsy", false, "look into the memory of the first find of each title, beside the sweep (x86-64 under TCG)")
		fail      = f.Bool("fail", false, "exit with status 3 if an unlucky layout is found")
		bisect    = f.Bool("bisect", false, "for git bisect run: exit 0 for none, 3 for an unlucky layout, 125 if it can't be told; the results of each commit are in a folder named by its vmlinux.o")
		link      = f.String("link", "delta", "link by `delta, pass or script`, each where it is proven, or else by the next: delta without lld, all that a kernel file takes, pass by one run of it, script by the whole link-vmlinux.sh")
		full      = f.Bool("full-script", false, "the same as -link script")
		asJSON    = f.Bool("json", false, "print the report as JSON")
	)
	return &command{
		args: "SCENARIO", min: 0, max: 1, long: true,
		summary: "link and boot many layouts, save the unlucky seeds",
		examples: []string{
			"unlucky sweep kcfi-seal -seeds 1:64",
			`unlucky sweep my.yaml -linux ~/src/linux -for 8h -exec 'mail -s "unlucky: $UNLUCKY_TITLE" me <"$UNLUCKY_FILE"'`,
			"unlucky sweep -kernel canary.kernel.tar.zst -seeds 1:1000",
			"git bisect run unlucky sweep ../my.yaml -linux . -o ../out -seeds 1:32 -stop-after 1 -bisect",
		},
		ended: bisected,
		run: func(ctx context.Context, c call) (err error) {
			switch {
			case o.kernel == "" && len(c.args) == 0:
				return usageError{errors.New("usage: unlucky sweep SCENARIO [flags], or unlucky sweep -kernel FILE [flags]")}
			case o.kernel != "" && len(c.args) > 0:
				return usageError{fmt.Errorf("-kernel %s has its scenario in it: leave %s out", o.kernel, c.args[0])}
			}
			by, err := linker.ParseWay(*link)
			if *full {
				by = linker.Script
			}
			switch {
			case err != nil:
				return usageError{err}
			case o.kernel != "" && by == linker.Script:
				return usageError{errors.New("-kernel and -link script (-full-script) exclude each other")}
			}
			s := &fuzz.Sweep{Dir: *dir, Workers: *workers, StopAfter: *stopAfter, For: *limit, Autopsy: *memory}
			if s.First, s.Last, err = parseSeeds(*rangeFlag); err != nil {
				return usageError{err}
			}
			if s.Strategy, err = layout.ParseStrategy(*strategy); err != nil {
				return usageError{err}
			}
			if *workers < 0 || *stopAfter < 0 || *limit < 0 {
				return usageError{errors.New("-j, -stop-after and -for take no negative value")}
			}
			if *bisect && *shard != "" {
				return usageError{errors.New("-bisect and -shard exclude each other")}
			}
			array := ""
			if !*bisect { // which is never part of an array
				if s.Shard, array, err = findShard(*shard, os.Getenv); err != nil {
					return usageError{err}
				}
			}
			if *fail && *bisect {
				return usageError{errors.New("-fail and -bisect exclude each other")}
			}
			if array != "" {
				c.scr.note("shard %d of %d, by %s", s.Shard.Index, s.Shard.Count, array)
			}
			var scenario scenarios.Scenario // with -kernel, its own
			if o.kernel == "" {
				if scenario, err = o.load(c.args); err != nil {
					return err
				}
			}
			if *bisect && o.kernel == "" {
				if err := kbuild.Check(ctx, scenario.Kernel); err != nil {
					return err // no other commit fares better
				}
			}
			report, err := runSweep(ctx, s, o, scenario, *notice, *bisect, by, c.scr)
			c.scr.done()
			if report != nil {
				if *asJSON {
					err = errors.Join(err, json.NewEncoder(c.out).Encode(report))
				} else {
					printReport(c.out, report)
					printNext(c.out, report, s, o.again())
				}
			}
			unlucky := report != nil && (report.Baseline.Found || report.Finds() > 0)
			if *bisect && report != nil && report.Idle && s.Template.Scenario.Verdict.Crash.Regexp == nil {
				unlucky = false // all fail alike, and nothing says that it is the bug
			}
			switch {
			case unlucky && (*fail || *bisect):
				return because(err, ExitNo, c.scr)
			case err == nil && ctx.Err() != nil:
				c.scr.note("interrupted; the same command continues here")
				return exit(ExitInterrupted) // above 127: ends a bisection
			case *bisect && (err != nil || report.Count(qemu.Pass) == 0):
				return because(err, exitCannotTell, c.scr)
			case err == nil && report.Idle:
				return exit(ExitFailed)
			}
			return err
		},
	}
}

// because prints an error, if there is one, and gives the exit status.
func because(err error, code exit, scr *screen) error {
	status(err, scr)
	return code
}

func runSweep(ctx context.Context, s *fuzz.Sweep, o *setup, scenario scenarios.Scenario, command string, bisect bool, by linker.Way, scr *screen) (*evidence.Report, error) {
	b, err := o.session(ctx, scenario, scr)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	b.By = by
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
		err = &host.HintError{Err: err, Hint: "the same command goes on once KVM works; without KVM begin anew, with -accel tcg and another -o"}
	}
	return report, err
}

// sweeps gives a sweep its kernel and guest, and has the screen show it.
func (b *session) sweeps(s *fuzz.Sweep, scr *screen) (err error) {
	if s.Workers == 0 {
		if s.Workers, err = b.workers(scr); err != nil {
			return err
		}
	}
	s.Kernel, s.Guest, s.Template = b, b.guest, b.template
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

// printReport prints what a sweep has found, as one would put it into a mail.
func printReport(out io.Writer, r *evidence.Report) {
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
	printBugs(&b, r.Bugs)
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
		printCoverage(&b, *r.Coverage, scenarios.Moving(r.Sections))
	}
	for _, doubt := range r.Doubts {
		fmt.Fprintf(&b, "\n%s\n", doubt)
	}
	if r.Tried > 0 && r.Count(qemu.LinkFailed) < len(r.Layouts) {
		fmt.Fprintf(&b, "\n%d layouts in %v: %.0f an hour\n", r.Tried, r.Elapsed.Round(time.Second), r.PerHour())
	}
	io.WriteString(out, report.Printable(b.String()))
}

// printNext prints what to type after a sweep.
func printNext(out io.Writer, r *evidence.Report, s *fuzz.Sweep, again string) {
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
		again := report.TrustFlag(s.Template.Scenario) + again
		fmt.Fprintf(&b, "\nnext, for example:\n  unlucky replay %s%s\n", path, again)
		if passed := r.Baseline.Kind == qemu.Pass || r.Count(qemu.Pass) > 0; passed && r.Strategy != layout.LLD {
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
	io.WriteString(out, report.Printable(b.String()))
}

// printFindings prints the files of each title, in one line that a shell
// expands, and the rates of those that did not show it in every boot.
func printFindings(out io.Writer, heading string, findings []evidence.Finding, dir string) {
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

// printBugs prints what memory has told of each title.
func printBugs(out io.Writer, bugs []evidence.Bug) {
	if len(bugs) > 0 {
		fmt.Fprintf(out, "\ndamaged code that has run, in the memory of one layout of each title:\n")
	}
	for _, b := range bugs {
		fmt.Fprintf(out, "  %4d  %s\n", b.Layouts, b.Damage)
		for _, t := range b.Titles {
			fmt.Fprintf(out, "        %s\n", t)
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

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unlucky/cli"
	"unlucky/fuzz/evidence"
	"unlucky/seeds"
)

// TestDiskFull sweeps onto a disk that is full, gives it one page more, and runs
// the same command again, until it ends: each file that a sweep writes has then
// met the full disk. Each time the error says what is not written and what to
// do, and what was written before is whole.
func TestDiskFull(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT TESTED with -short: sweeps onto a full disk, a page more at a time, some 30 seconds")
	}
	t.Parallel()
	l := newLane(t)
	disk := filepath.Join(l.dir, "disk")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=256k"); err != nil {
		t.Logf("NOT TESTED: a sweep onto a full disk: no tmpfs can be mounted here: %v", err)
		return
	}
	t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	filler, err := os.Create(filepath.Join(disk, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	fill := func() (bytes int64) {
		t.Helper()
		end, err := filler.Seek(0, 2)
		for ; err == nil; end += 4096 {
			_, err = filler.Write(make([]byte, 4096))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		info, err := filler.Stat()
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	full := func(errs string, err error) {
		t.Helper()
		if code := exitStatus(err); code != 1 || !regexp.MustCompile(`(?m)^unlucky: error: .*`+disk+`/\S+: .*no space left on device$`).MatchString(errs) ||
			!strings.Contains(errs, "unlucky: hint: make room on the disk of "+disk) || !strings.Contains(errs, "then run the same command again: it goes on where it stopped\n") {
			t.Fatalf("exit status %d:\n%s", code, errs)
		}
	}
	args := []string{"sweep", "tiny.yaml", "-seeds", "0:11", "-strategy", "text", "-json", "-j", "1", "-o"}
	var whole, report evidence.Report
	if err := json.Unmarshal([]byte(l.must(append(args, "whole")...)), &whole); err != nil {
		t.Fatal(err)
	}
	met := map[string]int{} // kinds of files that were not written
	runs := 0
	for size := fill(); ; size -= 4096 {
		if size < 0 {
			t.Fatal("an empty disk is not enough")
		}
		if err := filler.Truncate(size); err != nil {
			t.Fatal(err)
		}
		out, errs, err := l.run(append(args, disk)...)
		runs++
		if err == nil {
			if err := json.Unmarshal([]byte(out), &report); err != nil {
				t.Fatal(err)
			}
			break
		}
		full(errs, err)
		for kind, re := range map[string]string{"journal": `error: journal `, "layout": `layout-.*no space`, "console": `writing \S+\.console: .*no space`, "seed": `writing \S+\.yaml: .*no space`} {
			if regexp.MustCompile(re).MatchString(errs) {
				met[kind]++
			}
		}
		// What is there is whole.
		_, _, damage, err := seeds.ReadJournal(filepath.Join(disk, "tiny/sweep.journal"))
		if err != nil || damage != "" {
			t.Fatalf("%q, %v", damage, err)
		}
		saved, _ := filepath.Glob(filepath.Join(disk, "tiny/*/*.yaml"))
		for _, path := range saved {
			if _, err := seeds.Read(path); err != nil {
				t.Error(err)
			}
		}
		if left, _ := filepath.Glob(filepath.Join(disk, "tiny/*/.*")); left != nil {
			t.Errorf("left behind: %q", left)
		}
	}
	t.Logf("%d runs, not written were %v", runs, met)
	if len(met) != 4 {
		t.Errorf("of a journal, a layout, a console and a seed only %v have met the full disk", met)
	}
	if titles(report) != titles(whole) || verdicts(report) != verdicts(whole) {
		t.Errorf("in %d runs:\n%swant\n%s", runs, verdicts(report), verdicts(whole))
	}
	checkStore(t, filepath.Join(disk, "tiny"), whole)

	found, _ := filepath.Glob(filepath.Join(disk, "tiny/invalid*/*.yaml"))
	if found == nil {
		t.Fatal("no find to minimize")
	}
	minimize := []string{"minimize", found[0], "-ablate=false"}
	size := fill()
	_, errs, err := l.run(minimize...)
	full(errs, err)
	if err := filler.Truncate(size - 4096); err != nil {
		t.Fatal(err)
	}
	_, errs, err = l.run(minimize...) // the journal fits, the result does not
	full(errs, err)
	if err := filler.Truncate(size / 2); err != nil {
		t.Fatal(err)
	}
	if out := l.must(minimize...); !strings.Contains(out, "crashes when `victim` is at 0x20 mod 0x40") {
		t.Errorf("the answer is\n%s", out)
	}
}

// exitStatus is the exit status of a command.
func exitStatus(err error) int {
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// TestTwoAtOnce runs two at a time on one folder and on one cache: the second
// says who has it, and nothing is mixed.
func TestTwoAtOnce(t *testing.T) {
	slow(t)
	t.Parallel()
	a, b := newLane(t), newLane(t)
	out := filepath.Join(a.dir, "out")
	args := []string{"sweep", "tiny.yaml", "-strategy", "text", "-json", "-o", out, "-seeds"}
	first, _, firstErrs := a.start(append(args, "0:999999")...)
	ended := make(chan error, 1)
	go func() { ended <- first.Wait() }()
	defer first.Process.Kill()
	until := func(what string, ok func() bool) {
		t.Helper()
		for begin := time.Now(); !ok(); time.Sleep(10 * time.Millisecond) {
			if len(ended) > 0 || time.Since(begin) > time.Minute {
				t.Fatalf("%s: not so\n%s", what, firstErrs)
			}
		}
	}
	var found []string
	until("a find", func() bool {
		found, _ = filepath.Glob(filepath.Join(out, "tiny/invalid*/*.yaml"))
		return found != nil
	})
	holder := fmt.Sprintf("another unlucky (process %d) is ", first.Process.Pid)
	if _, errs, err := b.run(append(args, "0:999999")...); exitStatus(err) != 1 || !strings.Contains(errs, "sweep.journal: "+holder+"writing it; wait for that to end, or use another -o") {
		t.Errorf("on one folder: %v\n%s", err, errs)
	}
	if _, errs, err := a.run("sweep", "tiny.yaml", "-o", "other"); exitStatus(err) != 1 || !strings.Contains(errs, holder+"using the build of "+a.dir) || !strings.Contains(errs, "hint: wait for it") {
		t.Errorf("on one cache: %v\n%s", err, errs)
	}
	// A find may be minimized while the sweep goes on.
	if answer := b.must("minimize", found[0], "-trust", "-ablate=false"); !strings.Contains(answer, "crashes when `victim` is at 0x20 mod 0x40") {
		t.Errorf("the answer is\n%s", answer)
	}
	if len(ended) > 0 {
		t.Error("the first sweep has ended meanwhile: nothing was shown")
	}
	first.Process.Signal(syscall.SIGINT)
	if err := <-ended; exitStatus(err) != cli.ExitInterrupted {
		t.Errorf("interrupted: %v\n%s", err, firstErrs)
	}
	_, records, _, err := seeds.ReadJournal(filepath.Join(out, "tiny/sweep.journal"))
	if err != nil || len(records) < 2 {
		t.Fatalf("%d records, %v", len(records), err)
	}

	// Started at the same moment, one of them at least does it all.
	for round := range 3 {
		args := []string{"sweep", "tiny.yaml", "-strategy", "text", "-json", "-seeds", "0:7", "-o", filepath.Join(a.dir, fmt.Sprint("both", round))}
		x, xOut, xErrs := a.start(args...)
		y, yOut, yErrs := b.start(args...)
		done := 0
		for _, p := range []struct {
			err       error
			out, errs *bytes.Buffer
		}{{x.Wait(), xOut, xErrs}, {y.Wait(), yOut, yErrs}} {
			var report evidence.Report
			switch {
			case p.err == nil:
				done++
				if err := json.Unmarshal(p.out.Bytes(), &report); err != nil || len(report.Layouts) != 8 {
					t.Errorf("%d layouts, %v", len(report.Layouts), err)
				}
				checkStore(t, filepath.Join(args[len(args)-1], "tiny"), report)
			case !strings.Contains(p.errs.String(), "is writing it"):
				t.Errorf("%v\n%s", p.err, p.errs)
			}
		}
		if done == 0 {
			t.Error("none of the two has done it")
		}
	}
}

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"unlucky/fuzz/evidence"
	"unlucky/qemu"
	"unlucky/seeds"
)

// Three shards at the same time in one folder, each with a cache of its own, as
// on three machines. The second is killed in the middle and started again. Their
// records are those of one sweep, and nothing else is left.
func TestShardsKilled(t *testing.T) {
	slow(t)
	t.Parallel()
	l := newLane(t)
	args := []string{"sweep", "tiny.yaml", "-seeds", "0:23", "-strategy", "text", "-j", "1"}
	l.must(append(args, "-o", "whole")...)
	header, want, damage, err := seeds.ReadJournal(filepath.Join(l.dir, "whole/tiny/sweep.journal"))
	if err != nil || damage != "" || len(want) != 25 {
		t.Fatalf("one sweep: %d records, %q, %v", len(want), damage, err)
	}
	shard := func(i int) (wait func() error, kill func()) {
		machine := *l
		machine.env = append(slices.Clip(l.env), "XDG_CACHE_HOME="+filepath.Join(l.dir, fmt.Sprint("cache", i)))
		cmd, _, errs := machine.start(append(args, "-o", "out", "-shard", fmt.Sprintf("%d/3", i))...)
		return func() error {
			if err := cmd.Wait(); err != nil {
				return fmt.Errorf("shard %d: %w\n%s", i, err, errs)
			}
			return nil
		}, func() { cmd.Process.Signal(syscall.SIGKILL) }
	}
	journal := func(i int) string { return filepath.Join(l.dir, fmt.Sprintf("out/tiny/sweep-%d-of-3.journal", i)) }
	one, _ := shard(1)
	two, kill := shard(2)
	three, _ := shard(3)
	lines := func() int {
		data, _ := os.ReadFile(journal(2))
		return bytes.Count(data, []byte("\n"))
	}
	ended := make(chan error, 1)
	go func() { ended <- two() }()
	for lines() < 4 && len(ended) == 0 { // a heading of two, the baseline, and a seed
		time.Sleep(time.Millisecond)
	}
	kill()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "signal: killed") || lines() >= 3+8 {
		t.Errorf("not killed in the middle, with %d lines: %v", lines(), err)
	}
	two, _ = shard(2)
	for _, wait := range []func() error{one, two, three} {
		if err := wait(); err != nil {
			t.Error(err)
		}
	}
	var report evidence.Report // to check the folder by
	var got []seeds.Record
	for i := 1; i <= 3; i++ {
		h, records, damage, err := seeds.ReadJournal(journal(i))
		if err != nil || damage != "" || h == nil || *h != *header || len(records) != 1+8 {
			t.Fatalf("shard %d: header %+v, %d records, %q, %v; want %+v", i, h, len(records), damage, err, header)
		}
		for _, r := range records {
			if r.Layout != seeds.Baseline || i == 1 {
				got = append(got, r)
			}
		}
	}
	if got, want := recordTexts(got), recordTexts(want); got != want {
		t.Errorf("together:\n%swant\n%s", got, want)
	}
	report.Baseline, report.Layouts = got[0], got[1:]
	checkSaved(t, filepath.Join(l.dir, "out/tiny"), report)
	if left := l.left(); left != nil {
		t.Errorf("left behind: %q", left)
	}
}

// recordTexts is what must not depend on who has tried the layouts, in their order.
func recordTexts(records []seeds.Record) string {
	slices.SortFunc(records, func(a, b seeds.Record) int { return a.Layout.Compare(b.Layout) })
	var b strings.Builder
	for _, r := range records {
		fmt.Fprintf(&b, "%s %s %q found=%v %d/%d %s %s", r.Layout, r.Kind, r.Title, r.Found, r.Crashes, r.Boots, r.Plan, r.Addresses)
		if r.Kind != qemu.Pass { // of those that pass only the first few are saved
			fmt.Fprintf(&b, " %s", r.Image)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

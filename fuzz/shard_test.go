package fuzz_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sync/errgroup"

	"unlucky/fuzz"
	"unlucky/fuzz/evidence"
	"unlucky/qemu"
	"unlucky/seeds"
)

func TestParseShard(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"1/1", "3/8", "4294967295/4294967295"} {
		if s, err := seeds.ParseShard(text); err != nil || s.String() != text || s.Whole() != (text == "1/1") {
			t.Errorf("%s was read as %s, %v", text, s, err)
		}
	}
	if s := (seeds.Shard{}); s.String() != "1/1" || !s.Whole() {
		t.Errorf("the zero Shard is %s", s)
	}
	for _, text := range []string{"", "3", "/", "3/", "/8", "0/8", "9/8", "0/0", "-1/8", "1/-8", " 1/8", "1/8/8", "1/4294967296", "a/b"} {
		if s, err := seeds.ParseShard(text); err == nil {
			t.Errorf("%q was read as %s", text, s)
		}
	}
}

// Shards at the same time in one folder, one of them interrupted and begun
// again: together they give what one sweep gives, each layout once, and the
// folder holds what one sweep's does.
func TestShards(t *testing.T) {
	slow(t)
	t.Parallel()
	k := tiny(t, replacing(t, "main.c", "at % 64 == 0x20", "at % 64 != 0x20")) // an unlucky baseline is saved, too
	whole, err := sweep(k, scenario("canary"), t.TempDir(), 5, 20, 2).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const n = 3
	dir := t.TempDir()
	reports := make([]*evidence.Report, n)
	tallies := make([]fuzz.Tally, n)
	tried := make([]int, n)
	run := func(ctx context.Context, i int, boot func()) error {
		s := sweep(k, scenario("canary"), dir, 5, 20, 1)
		s.Shard = seeds.Shard{Index: uint32(i + 1), Count: n}
		s.Step = func(tally fuzz.Tally) { tallies[i] = tally }
		inner := s.Guest.Run
		s.Guest.Run = func(m qemu.Machine, ctx context.Context, e qemu.Expect) (qemu.Result, error) {
			boot()
			return inner(m, ctx, e)
		}
		r, err := s.Run(ctx)
		if r != nil {
			reports[i], tried[i] = r, tried[i]+r.Tried
		}
		return err
	}
	var group errgroup.Group
	for i := range n {
		group.Go(func() error {
			if i == 1 {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				boots := 0
				err := run(ctx, i, func() {
					if boots++; boots == 6 {
						cancel()
					}
				})
				if err != nil && !errors.Is(err, context.Canceled) {
					return err
				}
				if r := reports[i]; r == nil || len(r.Layouts) == 0 || len(r.Layouts) == 5 {
					return fmt.Errorf("not interrupted in the middle: %+v", r)
				}
			}
			return run(t.Context(), i, func() {})
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}

	together := evidence.Report{Baseline: whole.Baseline}
	var first *seeds.Header
	for i, want := range []int{6, 5, 5} {
		r := reports[i]
		if len(r.Layouts) != want || tried[i] != want || tallies[i].Done != want || tallies[i].Total != want || tallies[i].Unlucky != r.Finds() {
			t.Errorf("shard %d: %d layouts, %d tried, tally %+v; want %d", i+1, len(r.Layouts), tried[i], tallies[i], want)
		}
		path := filepath.Join(r.Dir, fmt.Sprintf("sweep-%d-of-3.journal", i+1))
		h, records, damage, err := seeds.ReadJournal(path)
		if err != nil || damage != "" || h == nil {
			t.Fatalf("%s: %v, %s, %v", path, h, damage, err)
		}
		if first == nil {
			first = h
		}
		if *h != *first {
			t.Errorf("%s begins with %+v, want %+v", path, *h, *first)
		}
		twins := 0
		for _, rec := range records {
			seed, ok := rec.Layout.Seed()
			switch {
			case !ok:
				want := whole.Baseline
				if i > 0 {
					want.Path = "" // the first has saved it
				}
				if rec.Millis, rec.At = want.Millis, want.At; fmt.Sprint(rec) != fmt.Sprint(want) {
					t.Errorf("shard %d: the baseline is %+v, want %+v", i+1, rec, want)
				}
				continue
			case int(seed-5)%n != i:
				t.Errorf("shard %d has tried seed %d", i+1, seed)
			case rec.Kind == qemu.Pass && rec.Path != "":
				twins++
			}
			together.Layouts = append(together.Layouts, rec)
		}
		if passed := r.Count(qemu.Pass); twins != min(1, passed) {
			t.Errorf("shard %d has saved %d twins, of %d that pass", i+1, twins, passed)
		}
		if found := r.Unlucky(); i > 0 && len(found) > 0 && found[0].Layouts[0].Layout == seeds.Baseline {
			t.Errorf("shard %d reports a baseline that it has not saved", i+1)
		}
	}
	slices.SortFunc(together.Layouts, func(a, b seeds.Record) int { return a.Layout.Compare(b.Layout) })
	if got, want := verdicts(&together), verdicts(whole); got != want {
		t.Errorf("together:\n%swant\n%s", got, want)
	}
	for _, rec := range append(together.Layouts, whole.Baseline) {
		if rec.Path == "" {
			continue
		}
		if f, err := seeds.Read(filepath.Join(reports[0].Dir, rec.Path)); err != nil || f.Layout != rec.Layout || f.Boots != rec.Boots {
			t.Errorf("%s: %+v, %v", rec.Layout.Name(), f, err)
		}
	}
	if one, err := os.ReadFile(seeds.BaselinePath(whole.Dir, k.Digest)); err != nil {
		t.Error(err)
	} else if three, err := os.ReadFile(seeds.BaselinePath(reports[0].Dir, k.Digest)); err != nil || string(one) != string(three) {
		t.Errorf("the baseline's layout is another than one sweep's: %v", err)
	}

	t.Run("stop after", func(t *testing.T) {
		for i, r := range reports {
			s := sweep(k, scenario("canary"), t.TempDir(), 5, 20, 2)
			s.Shard, s.StopAfter = seeds.Shard{Index: uint32(i + 1), Count: n}, 2
			got, err := s.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			want, finds := *r, 0
			end := slices.IndexFunc(r.Layouts, func(rec seeds.Record) bool {
				if rec.Found {
					finds++
				}
				return finds == 2
			})
			if end < 0 {
				t.Fatalf("shard %d has no two finds:\n%s", i+1, verdicts(r))
			}
			want.Layouts = r.Layouts[:end+1]
			if verdicts(got) != verdicts(&want) {
				t.Errorf("shard %d stopped with\n%swant\n%s", i+1, verdicts(got), verdicts(&want))
			}
		}
	})
	t.Run("more shards than seeds", func(t *testing.T) {
		s := sweep(k, scenario("canary"), t.TempDir(), 4294967294, 4294967295, 1)
		s.Shard = seeds.Shard{Index: 3, Count: 4}
		r, err := s.Run(t.Context())
		if err != nil || len(r.Layouts) != 0 || !r.Baseline.Found {
			t.Errorf("%+v, %v; want the baseline alone", r, err)
		}
	})
}

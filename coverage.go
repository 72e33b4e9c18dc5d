package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"unlucky/fuzz"
	"unlucky/linker"
	"unlucky/seeds"
)

// covered is the coverage of one kernel by all sweeps of it.
type covered struct {
	Object    string                  `json:"object"` // digest of vmlinux.o
	Sweeps    []string                `json:"sweeps"` // their folders
	Totals    fuzz.Totals             `json:"totals"`
	Functions []fuzz.FunctionCoverage `json:"functions,omitempty"` // the least covered first
	Fixed     []linker.Section        `json:"fixed,omitempty"`

	layout   []linker.Section // of the baseline
	journals []journal
	plans    map[string]bool // digests of those that are in journals
}

// journal is what one sweep adds.
type journal struct {
	strategy fuzz.Strategy
	records  []seeds.Record
}

func coverage(ctx context.Context, args []string, _ io.Reader, out io.Writer) error {
	f := flag.NewFlagSet("coverage", flag.ContinueOnError)
	var (
		n      = f.Int("n", 20, "`N` functions to list, the least covered first; 0 for none")
		fixed  = f.Bool("fixed", false, "list the input sections whose functions cannot move")
		asJSON = f.Bool("json", false, "print it as JSON")
	)
	dirs, err := parse(f, args, out, "coverage DIR... [flags]", 1, math.MaxInt)
	if err != nil {
		return err
	}
	if *n < 0 {
		return usageError{errors.New("-n takes no negative value")}
	}
	scr := newScreen(os.Stderr)
	kernels, failed := findCovered(dirs, scr)
	counted := kernels[:0]
	for _, k := range kernels {
		c, err := k.count(ctx, scr)
		scr.done()
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		counted = append(counted, k)
		k.Functions = c.Functions()
		k.Functions = k.Functions[:min(*n, len(k.Functions))]
		if *fixed {
			k.Fixed = c.Fixed()
		}
		if *asJSON {
			continue
		}
		if len(counted) > 1 {
			fmt.Fprintln(out)
		}
		var b strings.Builder
		k.print(&b)
		io.WriteString(out, printable(b.String())) // it has names out of objects
	}
	if *asJSON && len(counted) > 0 {
		failed = errors.Join(failed, json.NewEncoder(out).Encode(counted))
	}
	return failed
}

// findCovered finds the sweeps below some folders, by kernel. The error tells
// of those that can't be counted; it may come beside others.
func findCovered(dirs []string, scr *screen) (kernels []*covered, failed error) {
	paths, err := findJournals(dirs)
	if err != nil {
		return nil, err
	}
	found := false
	for _, path := range paths {
		h, records, damage, err := seeds.ReadJournal(path)
		dir := filepath.Dir(path)
		if damage != "" {
			scr.note("%s, nor counted", damage)
		}
		switch {
		case err != nil:
			failed = errors.Join(failed, err)
			continue
		case h == nil: // a sweep that has just begun
			continue
		}
		found = true
		strategy, err := fuzz.ParseStrategy(h.Strategy)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", dir, err))
			continue
		}
		if strategy == fuzz.LLD {
			scr.note("%s: not counted: under strategy lld only the images tell where the functions are", dir)
			continue
		}
		layout, err := seeds.ReadBaseline(dir, h.Object)
		if errors.Is(err, os.ErrNotExist) {
			err = &linker.HintError{
				Err:  fmt.Errorf("%s is missing: an earlier unlucky made this sweep", seeds.BaselinePath(dir, h.Object)),
				Hint: "run the same sweep again, which writes the file and tries no layout twice",
			}
		}
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		// Another linker or its script makes another kernel of the same vmlinux.o.
		i := slices.IndexFunc(kernels, func(k *covered) bool { return k.Object == h.Object && slices.Equal(k.layout, layout) })
		if i < 0 {
			i = len(kernels)
			kernels = append(kernels, &covered{Object: h.Object, layout: layout, plans: map[string]bool{}})
		}
		kernels[i].add(dir, strategy, records)
	}
	if !found && failed == nil {
		failed = &linker.HintError{
			Err:  fmt.Errorf("no sweep is in %s or below", strings.Join(dirs, ", ")),
			Hint: "give the folder of a sweep's results, such as unlucky.out",
		}
	}
	return kernels, failed
}

// findJournals finds the journals of sweeps in some folders and below, each
// once.
func findJournals(dirs []string) (paths []string, err error) {
	for _, dir := range dirs {
		if dir == "" {
			return nil, usageError{errors.New("an empty name is given for a folder")}
		}
		// A link to a folder is followed where it is given, and nowhere else.
		err := filepath.WalkDir(dir+string(filepath.Separator), func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && d.Name() == "sweep.journal" {
				paths = append(paths, filepath.Clean(path))
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths), nil
}

// add takes the layouts of a sweep that no other has had.
func (k *covered) add(dir string, strategy fuzz.Strategy, records []seeds.Record) {
	k.Sweeps = append(k.Sweeps, dir)
	j := journal{strategy: strategy}
	for _, r := range records {
		if !k.plans[r.Plan] && fuzz.Booted(r.Kind) {
			k.plans[r.Plan] = true
			j.records = append(j.records, r)
		}
	}
	k.journals = append(k.journals, j)
}

// count counts all layouts.
func (k *covered) count(ctx context.Context, scr *screen) (*fuzz.Coverage, error) {
	c, err := fuzz.NewCoverage(k.layout)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", k.Sweeps[0], err)
	}
	progress, before := scr.later("counting layouts"), 0
	for i, j := range k.journals {
		_, err := c.Recall(ctx, j.strategy, j.records, func(done, _ int) { progress(before+done, len(k.plans)) })
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.Sweeps[i], err)
		}
		before += len(j.records)
	}
	k.Totals = c.Totals()
	return c, nil
}

func (k *covered) print(out io.Writer) {
	fmt.Fprintf(out, "vmlinux.o %.12s: %s layouts in %s\n\n", k.Object, humanize.Comma(int64(k.Totals.Layouts)), strings.Join(k.Sweeps, ", "))
	printCoverage(out, k.Totals)
	if len(k.Functions) > 0 {
		fmt.Fprintf(out, "\nthe functions least covered:\n  %-18s", "in the baseline at")
		for _, r := range k.Functions[0].Residues {
			fmt.Fprintf(out, " %9s", fmt.Sprint("mod ", r.Modulus))
		}
		fmt.Fprintln(out)
	}
	for _, f := range k.Functions {
		fmt.Fprintf(out, "  %#-18x", f.Address)
		for _, r := range f.Residues {
			fmt.Fprintf(out, " %9s", fmt.Sprintf("%d/%d", r.Seen, r.Of))
		}
		fmt.Fprintf(out, "  %s\n", f.Name)
	}
	if len(k.Fixed) > 0 {
		fmt.Fprintf(out, "\nfixed by the linker script:\n")
	}
	for _, s := range k.Fixed {
		name := s.Name
		if name == "" {
			name = s.Function // of another object
		}
		fmt.Fprintf(out, "  %#-18x %9s bytes  %s\n", s.Address, humanize.Comma(int64(s.Size)), name)
	}
}

// printCoverage prints figures for a mail.
func printCoverage(out io.Writer, t fuzz.Totals) {
	comma := func(n int) string { return humanize.Comma(int64(n)) }
	fmt.Fprintf(out, "coverage of %s functions that can move (%s sections of others are fixed by the linker script):\n", comma(t.Functions), comma(t.Fixed))
	for _, r := range t.Residues {
		tenths := 1000 * r.Seen / r.Of // rounded down: 100 % is all of them
		fmt.Fprintf(out, "  %-10s %11s of %11s residues  %3d.%d %%\n", fmt.Sprint("mod ", r.Modulus), comma(r.Seen), comma(r.Of), tenths/10, tenths%10)
	}
	fmt.Fprintf(out, "  %-10s %11s pairs have touched, %s touch in the baseline\n", "neighbours", comma(t.Neighbours.Seen), comma(t.Neighbours.Baseline))
}

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"unlucky/fuzz/evidence"
	"unlucky/host"
	"unlucky/seeds"
)

// merge reads many sweeps as one, such as the shards of one.
func merge(f *flag.FlagSet) *command {
	var (
		to     = f.String("o", "", "`folder` to write the merged sweep to, seeds and consoles too; sweep -o goes on there")
		asJSON = f.Bool("json", false, "print the report as JSON, one object for each sweep")
	)
	return &command{
		args: "DIR...", min: 1, max: math.MaxInt,
		summary: "read many sweeps, such as the shards of one, as one",
		examples: []string{
			"unlucky merge /shared/out",
			"unlucky merge night1.out night2.out -o both.out",
		},
		run: func(ctx context.Context, c call) (err error) {
			if *to != "" {
				if _, err := os.Stat(*to); err == nil {
					c.args = append(c.args, *to) // what is there belongs to it
				}
			}
			all, failed := evidence.ReadResults(c.args, c.scr.note)
			for i, r := range all {
				if *to != "" {
					if err := writeMerged(r, *to); err != nil {
						failed = errors.Join(failed, err)
						continue
					}
				}
				report := r.Report()
				if report.Coverage, err = r.Covered(ctx, c.scr.later("counting layouts")); err != nil {
					failed = errors.Join(failed, err)
				}
				if *asJSON {
					if err := json.NewEncoder(c.out).Encode(report); err != nil {
						return err
					}
					continue
				}
				if i > 0 {
					fmt.Fprintln(c.out)
				}
				printReport(c.out, report)
			}
			return failed
		},
	}
}

// writeMerged writes some results as those of one sweep into a folder, where
// they are from then on.
func writeMerged(r *evidence.Results, dir string) (err error) {
	strategies := r.Strategies()
	if len(strategies) > 1 {
		return &host.HintError{
			Err:  fmt.Errorf("%s: a sweep has one strategy, and these have %s", strings.Join(r.Dirs, ", "), r.Report().Strategy),
			Hint: "without -o they are reported as one",
		}
	}
	if len(strategies) == 0 {
		return nil // nothing has been tried
	}
	store, err := seeds.Open(dir, r.Header.Scenario)
	if err != nil {
		return err
	}
	h := r.Header
	h.Strategy = string(strategies[0])
	journal, err := seeds.OpenJournal(filepath.Join(store.Dir(), seeds.SweepJournal), h)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, journal.Close()) }()
	if r.Layout != nil {
		if err := store.SaveBaseline(h.Object, r.Layout); err != nil {
			return err
		}
	}
	have := map[seeds.ID]seeds.Record{}
	for _, t := range journal.Records() {
		have[t.Layout] = t
	}
	take := func(t *evidence.Tried) error {
		record := t.Record
		if record.Path != "" {
			if rel, err := filepath.Rel(t.Dir, t.Path); err != nil || !filepath.IsLocal(rel) { // a folder may come by mail
				return fmt.Errorf("%s: %s is outside of %s, and is not copied", t.Layout.Name(), t.Path, t.Dir)
			}
			if record.Path, err = copySeed(store, t.Path); err != nil {
				return err
			}
			t.Path = filepath.Join(store.Dir(), record.Path)
		}
		if t.Dir = store.Dir(); reflect.DeepEqual(have[t.Layout], record) {
			return nil
		}
		return journal.Append(record)
	}
	if r.Baseline != nil {
		if err := take(r.Baseline); err != nil {
			return err
		}
	}
	for i := range r.Layouts {
		if err := take(&r.Layouts[i]); err != nil {
			return err
		}
	}
	return nil
}

// copySeed copies a saved seed, its console and what minimizing it has told into
// a store, and returns its path there.
func copySeed(store *seeds.Store, path string) (string, error) {
	f, console, err := readSeed(path)
	if err != nil {
		return "", err
	}
	to, err := store.Save(f, console)
	if err != nil {
		return "", err
	}
	switch f, console, err = readSeed(seeds.MinimizedPath(path)); {
	case errors.Is(err, fs.ErrNotExist): // it was not minimized
	case err != nil:
		return "", err
	default:
		if err := f.Write(seeds.MinimizedPath(to), console); err != nil {
			return "", err
		}
	}
	return filepath.Rel(store.Dir(), to)
}

// readSeed reads a saved seed and its console, nil where it has none.
func readSeed(path string) (f seeds.File, console []byte, err error) {
	if f, err = seeds.Read(path); err != nil {
		return f, nil, err
	}
	console, err = os.ReadFile(seeds.ConsolePath(path))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return f, console, err
}

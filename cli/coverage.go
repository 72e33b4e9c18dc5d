package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"unlucky/fuzz/evidence"
	"unlucky/layout"
	"unlucky/report"
	"unlucky/scenarios"
)

// covered is the coverage of one kernel by all sweeps of it.
type covered struct {
	Object    string                      `json:"object"` // digest of vmlinux.o
	Sweeps    []string                    `json:"sweeps"` // their folders
	Totals    evidence.Totals             `json:"totals"`
	Functions []evidence.FunctionCoverage `json:"functions,omitempty"` // the least covered first
	Fixed     []layout.Section            `json:"fixed,omitempty"`
	// Inserted is how many layouts have so many pieces of code that the linker has
	// added for their addresses; nil where none has any.
	Inserted map[int]int `json:"inserted,omitempty"`

	moving   string           // what can move
	layout   []layout.Section // of the baseline
	tried    []evidence.Tried // those that have booted, each once
	baseline bool             // it was tried, too
}

func coverage(f *flag.FlagSet) *command {
	var (
		n      = f.Int("n", 20, "`N` functions to list, the least covered first; 0 for none")
		fixed  = f.Bool("fixed", false, "list the input sections whose functions cannot move")
		asJSON = f.Bool("json", false, "print it as JSON")
	)
	return &command{
		args: "DIR...", min: 1, max: math.MaxInt,
		summary:  "say at which addresses sweeps have tried each function",
		examples: []string{"unlucky coverage unlucky.out/kcfi-seal -n 40"},
		run: func(ctx context.Context, c call) error {
			if *n < 0 {
				return usageError{errors.New("-n takes no negative value")}
			}
			kernels, failed := findCovered(c.args, c.scr)
			counted := kernels[:0]
			for _, k := range kernels {
				counts, err := k.count(ctx, c.scr)
				c.scr.done()
				if err != nil {
					failed = errors.Join(failed, err)
					continue
				}
				counted = append(counted, k)
				k.Functions = counts.Functions()
				k.Functions = k.Functions[:min(*n, len(k.Functions))]
				if *fixed {
					k.Fixed = counts.Fixed()
				}
			}
			return errors.Join(failed, printAll(c.out, *asJSON, counted))
		},
	}
}

// printAll prints what is told of each kernel, or all of it as one JSON array.
func printAll[T interface{ print(io.Writer) }](out io.Writer, asJSON bool, all []T) error {
	if asJSON && len(all) > 0 {
		return json.NewEncoder(out).Encode(all)
	}
	var b strings.Builder
	for i, one := range all {
		if i > 0 {
			fmt.Fprintln(&b)
		}
		one.print(&b)
	}
	_, err := io.WriteString(out, report.Printable(b.String())) // it has names out of objects
	return err
}

// findCovered finds the kernels that have been swept below some folders. The
// error tells of sweeps that can't be counted; it may come beside others.
func findCovered(dirs []string, scr *screen) (kernels []*covered, failed error) {
	all, failed := evidence.ReadResults(dirs, scr.note)
	for _, r := range all {
		failed = errors.Join(failed, r.LayoutErr)
		if r.Layout == nil {
			if r.LayoutErr == nil {
				scr.note("%s: not counted: under strategy lld only the images tell where the functions are", strings.Join(r.Dirs, ", "))
			}
			continue
		}
		// What was booted otherwise has been at the same addresses.
		i := slices.IndexFunc(kernels, func(k *covered) bool {
			return k.Object == r.Header.Object && slices.Equal(k.layout, r.Layout)
		})
		if i < 0 {
			i = len(kernels)
			kernels = append(kernels, &covered{Object: r.Header.Object, layout: r.Layout, moving: scenarios.Moving(r.Header.Sections)})
		}
		k := kernels[i]
		k.Sweeps = append(k.Sweeps, r.Dirs...)
		k.baseline = k.baseline || r.Baseline != nil
		for _, t := range r.All() {
			if evidence.Booted(t.Kind) {
				k.tried = append(k.tried, t)
			}
		}
	}
	for _, k := range kernels {
		slices.Sort(k.Sweeps)
		slices.SortFunc(k.tried, func(a, b evidence.Tried) int { return cmp.Compare(a.Plan, b.Plan) })
		k.tried = slices.CompactFunc(k.tried, func(a, b evidence.Tried) bool { return a.Plan == b.Plan })
	}
	return kernels, failed
}

// count counts all layouts.
func (k *covered) count(ctx context.Context, scr *screen) (*evidence.Coverage, error) {
	c, err := evidence.NewCoverage(k.layout)
	if err == nil {
		var untold int
		untold, err = c.Recall(ctx, k.tried, scr.later("counting layouts"))
		if untold > 0 {
			scr.note("%s: %d layouts of strategy lld are not counted: only their images told where the functions were", strings.Join(k.Sweeps, ", "), untold)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(k.Sweeps, ", "), err)
	}
	k.Totals = c.Totals()
	if slices.ContainsFunc(k.tried, func(t evidence.Tried) bool { return t.Inserted > 0 }) {
		k.Inserted = map[int]int{}
		for _, t := range k.tried {
			k.Inserted[t.Inserted]++
		}
	}
	return c, nil
}

func (k *covered) print(out io.Writer) {
	fmt.Fprintf(out, "vmlinux.o %.12s: %s layouts%s in %s\n\n", k.Object, humanize.Comma(int64(k.Totals.Layouts)), withBaseline(k.baseline), strings.Join(k.Sweeps, ", "))
	printCoverage(out, k.Totals, k.moving)
	if k.Inserted != nil {
		fmt.Fprintf(out, "  %-10s %s\n", "inserted", report.Wrap("", strings.Repeat(" ", 13), insertedText(k.Inserted)))
	}
	if len(k.Functions) > 0 {
		fmt.Fprintf(out, "\nthe %s least covered:\n  %-18s", k.moving, "in the baseline at")
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

// insertedText says how many layouts have how much that the linker has inserted.
func insertedText(layouts map[int]int) string {
	var parts []string
	for _, n := range slices.Sorted(maps.Keys(layouts)) {
		parts = append(parts, fmt.Sprintf("%d in %s", n, humanize.Comma(int64(layouts[n]))))
	}
	return "patches of erratum 843419 and veneers, by layouts: " + strings.Join(parts, ", ")
}

// printCoverage prints figures for a mail, of what can move.
func printCoverage(out io.Writer, t evidence.Totals, moving string) {
	comma := func(n int) string { return humanize.Comma(int64(n)) }
	fmt.Fprintf(out, "coverage of %s %s that can move (%s sections of others are fixed by the linker script):\n", comma(t.Functions), moving, comma(t.Fixed))
	for _, r := range t.Residues {
		tenths := 1000 * r.Seen / r.Of // rounded down: 100 % is all of them
		fmt.Fprintf(out, "  %-10s %11s of %11s residues  %3d.%d %%\n", fmt.Sprint("mod ", r.Modulus), comma(r.Seen), comma(r.Of), tenths/10, tenths%10)
	}
	fmt.Fprintf(out, "  %-10s %11s pairs have touched, %s touch in the baseline\n", "neighbours", comma(t.Neighbours.Seen), comma(t.Neighbours.Baseline))
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sync/errgroup"

	"unlucky/fuzz"
	"unlucky/linker"
)

// hunted is one line of hunt's table: median layouts to the first crash.
type hunted struct {
	Kind   string                `json:"kind"`
	What   string                `json:"what"`
	Median map[fuzz.Strategy]int `json:"median"`
}

func hunt(ctx context.Context, args []string, _ io.Reader, out io.Writer) error {
	f := flag.NewFlagSet("hunt", flag.ContinueOnError)
	o := overrides(f)
	var (
		bugs   = f.Int("bugs", 200, "`N` bugs to draw of each kind")
		seeds  = f.Int("seeds", 2048, "`N` seeds after which a bug counts as not found")
		asJSON = f.Bool("json", false, "print the table as JSON")
	)
	rest, err := parse(f, args, out, "hunt [SCENARIO] [flags]", 0, 1)
	if err != nil {
		return err
	}
	if *bugs < 1 || *seeds < 1 {
		return usageError{errors.New("-bugs and -seeds are at least 1")}
	}
	scenario, err := o.load(rest, "canary")
	if err != nil {
		return err
	}
	scr := newScreen(os.Stderr)
	kernel, err := linker.Prepare(ctx, cacheDir(), scenario.Kernel, scr.progress)
	if err != nil {
		return err
	}
	defer kernel.Close()
	layout, err := kernel.Layout(ctx)
	if err != nil {
		return err
	}
	h, err := fuzz.NewHunt(layout, *seeds)
	if err != nil {
		return err
	}
	strategies := []fuzz.Strategy{fuzz.Text, fuzz.Cover}
	var drawn []fuzz.Bug // of all kinds, one behind the other
	for _, k := range fuzz.BugKinds {
		bugs, err := h.Draw(k, *bugs)
		if err != nil {
			return err
		}
		drawn = append(drawn, bugs...)
	}
	first := make([][]int, len(strategies))
	scr.progress(fmt.Sprintf("hunting %d bugs with %d seeds of each strategy (a minute)", len(drawn), *seeds), 0, 0)
	group, ctx := errgroup.WithContext(ctx)
	for i, s := range strategies {
		group.Go(func() (err error) {
			first[i], err = h.First(ctx, s, drawn)
			return err
		})
	}
	err = group.Wait()
	scr.done()
	if err != nil {
		return err
	}
	var table []hunted
	for n, k := range fuzz.BugKinds {
		row := hunted{k.Name, k.What, map[fuzz.Strategy]int{}}
		for i, s := range strategies {
			row.Median[s] = fuzz.Median(first[i][n**bugs : (n+1)**bugs])
		}
		table = append(table, row)
	}
	if *asJSON {
		return json.NewEncoder(out).Encode(table)
	}
	fmt.Fprintf(out, "%s, vmlinux.o %.12s: layouts to the first crash, median of %d bugs of each kind\n\n", scenario.Name, kernel.Digest, *bugs)
	fmt.Fprintf(out, "  %-19s %8s %8s %7s\n", "kind", "text", "cover", "ratio")
	var logs float64
	for _, row := range table {
		a, b := row.Median[fuzz.Text], row.Median[fuzz.Cover]
		show := func(n int) string {
			if n > *seeds {
				return fmt.Sprintf(">%d", *seeds)
			}
			return fmt.Sprint(n)
		}
		fmt.Fprintf(out, "  %-19s %8s %8s %7.2f  %s\n", row.Kind, show(a), show(b), float64(b)/float64(a), row.What)
		logs += math.Log(float64(b) / float64(a))
	}
	fmt.Fprintf(out, "  %-19s %8s %8s %7.2f\n", "geometric mean", "", "", math.Exp(logs/float64(len(table))))
	return nil
}

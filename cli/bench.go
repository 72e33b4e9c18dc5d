package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"gonum.org/v1/gonum/stat"

	"unlucky/fuzz"
	"unlucky/fuzz/evidence"
	"unlucky/host"
	"unlucky/layout"
	"unlucky/linker"
	"unlucky/qemu"
)

// measured is what bench prints.
type measured struct {
	Machine string         `json:"machine"`
	Kernel  string         `json:"kernel"`
	ByHand  rates          `json:"by-hand"` // layouts an hour, one figure a repeat
	Sweep   rates          `json:"sweep"`
	Floor   rates          `json:"floor"`
	Boots   rates          `json:"boots"`
	Layouts int            `json:"layouts"` // of all sweeps
	Steps   evidence.Steps `json:"steps"`   // of all sweeps
	Links   links          `json:"links"`
	target  string         // of make by hand
}

// links are what links cost, in CPU time, of so many layouts each: by delta and in one
// pass of lld, all that follows included.
type links struct {
	Layouts int           `json:"layouts"`
	Delta   time.Duration `json:"delta"` // 0 where layouts can't be linked so
	Pass    time.Duration `json:"pass"`
}

type rates []float64

func (r rates) median() float64 {
	return stat.Quantile(0.5, stat.Empirical, slices.Sorted(slices.Values(r)), nil)
}

func bench(f *flag.FlagSet) *command {
	o := new(setup)
	o.guest(f)
	var (
		repeats = f.Int("repeats", 5, "`N` times to measure each way, in turn")
		layouts = f.Int("layouts", 80, "`N` layouts for one figure of the sweep and of the floor")
		workers = f.Int("j", 0, "`layouts` at the same time, as in sweep")
		asJSON  = f.Bool("json", false, "print the figures as JSON")
	)
	return &command{
		args: "[SCENARIO]", min: 0, max: 1, long: true,
		summary:  "measure layouts an hour: by hand, by a sweep, and the least they can cost",
		examples: []string{"unlucky bench -repeats 3"},
		run: func(ctx context.Context, c call) error {
			if *repeats < 1 || *layouts < 1 || *workers < 0 {
				return usageError{errors.New("-repeats and -layouts are at least 1, -j is not negative")}
			}
			// By default canary's kernel, with nothing in it that crashes: no boots to
			// confirm that.
			scenario, err := o.load(c.args, "boot")
			if err != nil {
				return err
			}
			if scenario.Guest.Command != "" {
				return usageError{fmt.Errorf("bench %s: it measures QEMU, and guest.command boots this", scenario.Name)}
			}
			r, err := openSession(ctx, scenario, c.scr)
			if err != nil {
				return err
			}
			defer r.Close()
			if *workers == 0 {
				if *workers, err = r.workers(c.scr); err != nil {
					return err
				}
			}
			m, err := r.measure(ctx, *repeats, *layouts, *workers, c.scr)
			c.scr.done()
			if err != nil {
				return r.advise(err)
			}
			if *asJSON {
				return json.NewEncoder(c.out).Encode(m)
			}
			m.print(c.out)
			return nil
		},
	}
}

// measure takes each way in turn, so that what else the machine does is shared
// by all of them.
func (b *session) measure(ctx context.Context, repeats, layouts, workers int, scr *screen) (m measured, err error) {
	m.Machine = machineName()
	// Decides the accelerator and learns how one pass is made, as the first minute of
	// a sweep does.
	scr.progress("warming up", 0, 0)
	if _, err := b.sweepFor(ctx, layout.Text, 2, workers, scr.note); err != nil {
		return m, err
	}
	m.Kernel = fmt.Sprintf("%s, vmlinux.o %.12s, lld %s, %s", b.template.Scenario.Name, b.Digest, b.LLD, qemu.Named(b.template.Tools.QEMU, b.guest.Machine.Accel))
	m.target = b.Arch.Target
	scr.progress("making the first "+m.target+" by hand (half a minute)", 0, 0)
	hand, err := b.NewByHand(ctx, b.template.Scenario.Kernel)
	if err != nil {
		return m, err
	}
	defer hand.Close()
	step := fmt.Sprintf("measuring by hand, the sweep, the floor and boots alone, %d times in turn", repeats)
	for n := range repeats {
		scr.progress(step, int64(n), int64(repeats))
		rate, err := b.byHand(ctx, hand, uint32(n+1))
		if err != nil {
			return m, err
		}
		m.ByHand = append(m.ByHand, rate)
		report, err := b.sweepFor(ctx, layout.Text, layouts, workers, func(string, ...any) {})
		if err != nil {
			return m, err
		}
		m.Sweep = append(m.Sweep, report.PerHour())
		m.Layouts += report.Tried
		m.Steps.Add(report.Steps)
		if rate, err = b.floor(ctx, layouts, true); err != nil {
			return m, err
		}
		m.Floor = append(m.Floor, rate)
		if rate, err = b.floor(ctx, layouts, false); err != nil {
			return m, err
		}
		m.Boots = append(m.Boots, rate)
	}
	scr.progress("measuring links", 0, 0)
	m.Links, err = b.links(ctx, layouts)
	return m, err
}

// links links layouts both ways, each after the other, without booting them.
func (b *session) links(ctx context.Context, layouts int) (m links, err error) {
	sections, err := b.Layout(ctx)
	if err != nil {
		return m, err
	}
	w, err := b.NewWorker()
	if err != nil {
		return m, err
	}
	defer w.Close()
	defer func(by linker.Way) { b.By = by }(b.By)
	link := func(by linker.Way, seed int) (linker.Way, time.Duration, error) {
		b.By = by
		begin := cpuTime()
		image, err := w.Link(ctx, layout.Text.Plan(uint32(seed), sections))
		if err == nil {
			err = image.Remove()
		}
		return image.By, cpuTime() - begin, err
	}
	for seed := 1; m.Layouts < layouts && seed < 2*layouts+10; seed++ {
		by, delta, err := link(linker.Delta, seed)
		if err != nil {
			return m, err
		}
		_, pass, err := link(linker.Pass, seed)
		if err != nil {
			return m, err
		}
		if by == linker.Delta {
			m.Layouts, m.Delta, m.Pass = m.Layouts+1, m.Delta+delta, m.Pass+pass
		}
	}
	return m, nil
}

// cpuTime is that of this process and of all that it has waited for.
func cpuTime() (sum time.Duration) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if unix.Getrusage(who, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}

// byHand is one layout by make and QEMU.
func (b *session) byHand(ctx context.Context, hand *linker.ByHand, seed uint32) (float64, error) {
	sections, err := b.Layout(ctx)
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	image, err := hand.Make(ctx, layout.Text.Plan(seed, sections))
	if err != nil {
		return 0, err
	}
	r, err := b.guest.Boot(ctx, image)
	if err == nil && r.Kind == qemu.Infra {
		err = errors.New(r.Reason)
	}
	return perHour(1, begin), err
}

// sweepFor is a sweep of the seeds from 1 on, with its results thrown away.
func (b *session) sweepFor(ctx context.Context, strategy layout.Strategy, layouts, workers int, note func(string, ...any)) (*evidence.Report, error) {
	dir, err := os.MkdirTemp("", "unlucky-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	s := fuzz.Sweep{
		Kernel: b, Guest: b.guest, Template: b.template, Strategy: strategy, Dir: dir, First: 1, Last: uint32(layouts),
		Workers: workers, Note: note, Step: func(fuzz.Tally) {},
	}
	r, err := s.Run(ctx)
	if err == nil {
		err = ctx.Err()
	}
	return r, err
}

// floor boots one layout again and again, on each CPU, with nothing beside QEMU, or
// beside lld and QEMU where each boot is of a link of its own.
func (b *session) floor(ctx context.Context, layouts int, links bool) (float64, error) {
	sections, err := b.Layout(ctx)
	if err != nil {
		return 0, err
	}
	defer func(by linker.Way) { b.By = by }(b.By)
	b.By = linker.Pass
	cpus := runtime.NumCPU()
	type linked struct {
		*linker.Worker
		image string
	}
	workers := make(chan linked, cpus)
	for range cpus {
		w, err := b.NewWorker()
		if err != nil {
			return 0, err
		}
		defer w.Close()
		image, err := w.Link(ctx, layout.Text.Plan(1, sections))
		if err == nil {
			err = image.Remove()
		}
		if err != nil {
			return 0, err
		}
		path, err := w.Pass(ctx)
		if err != nil {
			return 0, err
		}
		workers <- linked{w, path}
	}
	begin := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(cpus)
	for range layouts {
		group.Go(func() error {
			w := <-workers
			defer func() { workers <- w }()
			if links {
				if _, err := w.Pass(ctx); err != nil {
					return err
				}
			}
			m := b.guest.Machine
			m.Kernel = w.image
			r, err := m.Boot(ctx, b.guest.Expect)
			if err == nil && r.Kind == qemu.Infra {
				err = fmt.Errorf("booting %s: %s", w.image, r.Reason)
			}
			return err
		})
	}
	err = group.Wait()
	return perHour(layouts, begin), err
}

func perHour(layouts int, begin time.Time) float64 {
	return float64(layouts) / time.Since(begin).Hours()
}

// machineName is what figures are to be compared by.
func machineName() string {
	name := runtime.GOARCH
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if m := modelName.FindSubmatch(data); m != nil {
			name = string(m[1])
		}
	}
	return fmt.Sprintf("%d CPUs, %s, %s of memory available", runtime.NumCPU(), name, humanize.IBytes(host.AvailableMemory()))
}

var modelName = regexp.MustCompile(`(?m)^model name\s*: (.*)$`)

// print ends with the two figures that count.
func (m measured) print(out io.Writer) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n\nlayouts an hour, median of %d (lowest to highest)\n", m.Kernel, m.Machine, len(m.Sweep))
	for _, row := range []struct {
		name, what string
		r          rates
	}{
		{"by hand", "make " + m.target + ", QEMU", m.ByHand},
		{"sweep", "unlucky sweep", m.Sweep},
		{"floor", "one pass of lld, QEMU, on each CPU", m.Floor},
		{"boots", "QEMU alone, on each CPU", m.Boots},
	} {
		fmt.Fprintf(&b, "  %-8s %-36s %7.0f  (%.0f to %.0f)\n", row.name, row.what, row.r.median(), slices.Min(row.r), slices.Max(row.r))
	}
	steps := []struct {
		name, what string
		d          time.Duration
	}{
		{"pad", "the sections of vmlinux.o that change", m.Steps.Pad},
		{"link", "delta, or one pass of lld; CPU time", m.Steps.Link},
		{"kallsyms", "addresses into what lld has linked", m.Steps.Kallsyms},
		{"image", "its addresses held against the plan", m.Steps.Image},
		{"start", "QEMU, until the guest's first byte", m.Steps.Start},
		{"boot", "until QEMU's end", m.Steps.Boot},
		{"verdict", "saved seeds, journal", m.Steps.Verdict},
	}
	var sum time.Duration
	for _, s := range steps {
		sum += s.d
	}
	fmt.Fprintf(&b, "\nthe steps of a layout in the sweep, in wall-clock time\n")
	for _, s := range steps {
		fmt.Fprintf(&b, "  %-8s %-40s %6.1f ms  %5.1f %%\n", s.name, s.what, 1e3*s.d.Seconds()/float64(m.Layouts), 100*float64(s.d)/float64(sum))
	}
	sweep := m.Sweep.median()
	fmt.Fprintf(&b, "\n%.1fx by hand\n%.0f %% of the floor\n%.0f %% of the boots\n", sweep/m.ByHand.median(), 100*sweep/m.Floor.median(), 100*sweep/m.Boots.median())
	if n := m.Links.Layouts; n > 0 {
		ms := func(d time.Duration) float64 { return 1e3 * d.Seconds() / float64(n) }
		fmt.Fprintf(&b, "\na link, in CPU time with all that follows, mean of %d: %.1f ms by delta, %.1f by one pass of lld: %.2f of it\n",
			n, ms(m.Links.Delta), ms(m.Links.Pass), float64(m.Links.Delta)/float64(m.Links.Pass))
	}
	io.WriteString(out, b.String())
}

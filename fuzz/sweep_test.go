package fuzz_test

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"unlucky/fuzz"
	"unlucky/fuzz/evidence"
	"unlucky/host"
	"unlucky/layout"
	"unlucky/linker"
	"unlucky/qemu"
	"unlucky/scenarios"
	"unlucky/seeds"
)

// kernel makes a *linker.Kernel a fuzz.Kernel.
type kernel struct{ *linker.Kernel }

func (k kernel) Linker() (fuzz.Linker, error) { return k.NewWorker() }

// linkerOf is a linker for the length of a test.
func linkerOf(t testing.TB, k kernel) fuzz.Linker {
	t.Helper()
	l, err := k.Linker()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// tiny prepares linker/testdata/tiny, a kernel tree in small whose guest
// crashes at shutdown for some addresses of one of its functions, if "canary"
// stands on its command line. edit may change its files first.
func tiny(t testing.TB, edit func(dir string)) kernel {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tiny")
	if err := os.CopyFS(dir, os.DirFS("../linker/testdata/tiny")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "scripts/link-vmlinux.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(dir)
	}
	k, err := linker.Prepare(t.Context(), t.TempDir(), scenarios.Kernel{Dir: dir, Arch: "x86_64", Config: "tinyconfig", Image: "vmlinux"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return kernel{Kernel: k}
}

// replacing changes a text in one of tiny's files.
func replacing(t testing.TB, name, from, to string) func(dir string) {
	return func(dir string) {
		path := filepath.Join(dir, name)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), from) {
			t.Fatalf("%s has no %q", name, from)
		}
		if err := os.WriteFile(path, []byte(strings.Replace(string(text), from, to, 1)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// scenario is one for tiny.
func scenario(append string) scenarios.Scenario {
	return scenarios.Scenario{
		Name:   "tiny",
		Kernel: scenarios.Kernel{Dir: "/tiny", Arch: "x86_64", Config: "tinyconfig", Image: "vmlinux"},
		Guest: scenarios.Guest{Init: "true\n", Memory: 64 << 20, CPUs: 1, Machine: "microvm,acpi=off", CPU: "max", Accel: "tcg",
			Append: append, Limit: scenarios.Duration(20 * time.Second)},
		Verdict: scenarios.Verdict{Pass: scenarios.Regexp{Regexp: regexp.MustCompile("tiny: goodbye")}, Confirm: 1},
	}
}

// sweep is a sweep of tiny with its results in dir.
func sweep(k kernel, s scenarios.Scenario, dir string, first, last uint32, workers int) *fuzz.Sweep {
	g := fuzz.NewGuest(s, "")
	return &fuzz.Sweep{
		Kernel: k, Guest: g, Strategy: layout.Text, Dir: dir, First: first, Last: last, Workers: workers,
		Template: seeds.Template{Scenario: s, Tools: seeds.Tools{Clang: k.Clang, LLD: k.LLD, QEMU: "7.2"}, Object: k.Digest, Initrd: strings.Repeat("0", 64)},
		Note:     func(string, ...any) {}, Step: func(fuzz.Tally) {},
	}
}

// verdicts is what must not depend on how a sweep was run.
func verdicts(r *evidence.Report) string {
	var b strings.Builder
	for _, l := range append([]seeds.Record{r.Baseline}, r.Layouts...) {
		fmt.Fprintf(&b, "%s %s %q found=%v %d/%d %.8s %.8s", l.Layout, l.Kind, l.Title, l.Found, l.Crashes, l.Boots, l.Plan, l.Addresses)
		if l.Kind != qemu.Pass { // of those that pass only the first few are saved
			fmt.Fprintf(&b, " %.8s", l.Image)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestSweep(t *testing.T) {
	t.Parallel()
	k := tiny(t, nil)
	dir := t.TempDir()
	s := sweep(k, scenario("canary"), dir, 0, 31, 2)
	var notified []string
	s.Found = func(path string) { notified = append(notified, path) }
	var last fuzz.Tally
	s.Step = func(tally fuzz.Tally) { last = tally }
	r, err := s.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Layouts) != 32 || last.Done != 32 || last.Total != 32 || last.Tried != 32 || last.Unlucky != r.Finds() {
		t.Errorf("%d layouts, tally %+v, want 32", len(r.Layouts), last)
	}
	if r.Finds() == 0 || r.Count(qemu.Pass) == 0 || r.Finds()+r.Count(qemu.Pass) != 32 {
		t.Fatalf("%d finds and %d passes of 32, want some of both:\n%s", r.Finds(), r.Count(qemu.Pass), verdicts(r))
	}
	if len(notified) != 1 {
		t.Errorf("the first find was told %d times", len(notified))
	}
	// The image itself says which layouts crash, and what is covered.
	l := linkerOf(t, k)
	twins := 0
	sections, err := k.Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	image, err := l.Link(t.Context(), layout.Plan{})
	if err != nil {
		t.Fatal(err)
	}
	bySymbols := newNaive(sections)
	bySymbols.add(symbols(t, image.Path))
	for _, rec := range r.Layouts {
		seed, _ := rec.Layout.Seed()
		image, err := l.Link(t.Context(), layout.Text.Plan(seed, sections))
		if err != nil {
			t.Fatal(err)
		}
		bySymbols.add(symbols(t, image.Path))
		if at := symbols(t, image.Path)["victim"]; rec.Found != (at%64 == 0x20) {
			t.Errorf("seed %d: victim is at %#x, found %v", seed, at, rec.Found)
		}
		if rec.Found && (rec.Title != "invalid opcode in canary_reboot" || rec.Boots != 2 || rec.Crashes != 2) {
			t.Errorf("seed %d: %+v", seed, rec)
		}
		if rec.Path == "" {
			if rec.Found {
				t.Errorf("seed %d was not saved", seed)
			}
			continue
		}
		path := filepath.Join(r.Dir, rec.Path)
		f, err := seeds.Read(path)
		if err != nil {
			t.Error(err)
			continue
		}
		if rec.Kind == qemu.Pass {
			twins++
		}
		console, err := os.ReadFile(strings.TrimSuffix(path, ".yaml") + ".console")
		if err != nil || !strings.Contains(string(console), "tiny: hello") {
			t.Errorf("seed %d: its console is %q, %v", seed, console, err)
		}
		// Each saved seed is linked again to the same image, and shows the same.
		image, err = fuzz.Relink(t.Context(), f, k, l, k.Digest, s.Template.Tools)
		if err != nil {
			t.Error(err)
			continue
		}
		again, err := fuzz.Replay(t.Context(), f, s.Guest, image.Path, 2, func(qemu.Result) {})
		if err != nil || again.Shown != 2 || again.Boots != 2 {
			t.Errorf("seed %d: replayed %+v, %v", seed, again, err)
		}
	}
	if twins != 3 {
		t.Errorf("%d twins are saved, want 3", twins)
	}
	bySymbols.check(t, r.Coverage)
	if last.Coverage == nil || *last.Coverage != *r.Coverage {
		t.Errorf("the last tally has coverage %+v, the report %+v", last.Coverage, r.Coverage)
	}

	t.Run("again", func(t *testing.T) {
		s := sweep(k, scenario("canary"), dir, 0, 31, 1)
		again, err := s.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if again.Tried != 0 || verdicts(again) != verdicts(r) || *again.Coverage != *r.Coverage {
			t.Errorf("%d layouts tried again; verdicts\n%swant\n%s", again.Tried, verdicts(again), verdicts(r))
		}
	})
	t.Run("another sweep in the same folder", func(t *testing.T) {
		if _, err := sweep(k, scenario("canary quiet"), dir, 0, 31, 1).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "QEMU arguments") {
			t.Errorf("error %v, want one that names what differs", err)
		}
	})
	t.Run("one worker", func(t *testing.T) {
		slow(t)
		one, err := sweep(k, scenario("canary"), t.TempDir(), 0, 31, 1).Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if verdicts(one) != verdicts(r) {
			t.Errorf("verdicts depend on the number of workers:\n%swant\n%s", verdicts(one), verdicts(r))
		}
	})
	t.Run("stop after", func(t *testing.T) {
		slow(t)
		var want []seeds.Record
		for _, rec := range r.Layouts {
			if want = append(want, rec); rec.Found {
				break
			}
		}
		for _, workers := range []int{1, 3} {
			s := sweep(k, scenario("canary"), t.TempDir(), 0, 31, workers)
			s.StopAfter = 1
			got, err := s.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			most := len(want) + 2
			if workers > 1 {
				most = 31 // those behind a slow one are tried as well
			}
			if len(got.Layouts) != len(want) || got.Finds() != 1 || got.Tried > most {
				t.Errorf("%d workers: stopped with %d layouts of %d tried and %d finds, want %d layouts", workers, len(got.Layouts), got.Tried, got.Finds(), len(want))
			}
		}
	})
	t.Run("healthy", func(t *testing.T) {
		slow(t)
		var notes []string
		s := sweep(k, scenario("off"), t.TempDir(), 0, 31, 2)
		s.Note = func(format string, a ...any) { notes = append(notes, fmt.Sprintf(format, a...)) }
		healthy, err := s.Run(t.Context())
		if err != nil || healthy.Count(qemu.Pass) != 32 {
			t.Fatalf("%v\n%s", err, verdicts(healthy))
		}
		if !slices.Contains(notes, "nothing found so far: 16 of 16 layouts pass") {
			t.Errorf("notes %q", notes)
		}
	})
}

// Interrupted anywhere and run again, a sweep gives what an uninterrupted one
// gives, and tries no layout twice.
func TestInterrupted(t *testing.T) {
	slow(t)
	t.Parallel()
	k := tiny(t, nil)
	whole, err := sweep(k, scenario("canary"), t.TempDir(), 1, 12, 2).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, workers := range []int{1, 2} {
		dir := t.TempDir()
		tried, runs := 0, 0
		for ; ; runs++ {
			if runs > 40 {
				t.Fatal("it does not get on")
			}
			ctx, cancel := context.WithCancel(t.Context())
			s := sweep(k, scenario("canary"), dir, 1, 12, workers)
			boots, run := 0, s.Guest.Run
			var mu sync.Mutex
			s.Guest.Run = func(m qemu.Machine, ctx context.Context, e qemu.Expect) (qemu.Result, error) {
				mu.Lock()
				boots++
				if boots == 2+runs%5 {
					cancel() // in the middle of a boot, of the baseline too
				}
				mu.Unlock()
				return run(m, ctx, e)
			}
			r, err := s.Run(ctx)
			done := ctx.Err() == nil
			cancel()
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			if r != nil {
				tried += r.Tried
			}
			if done {
				if verdicts(r) != verdicts(whole) {
					t.Errorf("%d workers, %d runs:\n%swant\n%s", workers, runs, verdicts(r), verdicts(whole))
				}
				if *r.Coverage != *whole.Coverage {
					t.Errorf("%d workers, %d runs: coverage %+v, want %+v", workers, runs, *r.Coverage, *whole.Coverage)
				}
				break
			}
		}
		if tried != 12 {
			t.Errorf("%d workers: %d layouts were tried in %d runs, want each of 12 once", workers, tried, runs)
		}
	}
}

// The layout that one has can be the bad one.
func TestUnluckyBaseline(t *testing.T) {
	slow(t)
	t.Parallel()
	k := tiny(t, replacing(t, "main.c", "at % 64 == 0x20", "at % 64 != 0x20"))
	s := sweep(k, scenario("canary"), t.TempDir(), 1, 16, 2)
	told := 0
	s.Found = func(string) { told++ }
	r, err := s.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if told != 1 {
		t.Errorf("the first find of a seed was told %d times", told)
	}
	if !r.Baseline.Found || r.Count(qemu.Pass) == 0 {
		t.Fatalf("want an unlucky baseline and some layouts that pass:\n%s", verdicts(r))
	}
	f, err := seeds.Read(filepath.Join(r.Dir, r.Baseline.Path))
	if err != nil || f.Layout != seeds.Baseline {
		t.Errorf("the baseline was saved as %+v, %v", f.Layout, err)
	}
}

// A crash of no layout in particular is doubted, and one other than the crash
// looked for is kept apart.
func TestAlikeAndOthers(t *testing.T) {
	slow(t)
	t.Parallel()
	k := tiny(t, replacing(t, "main.c", "at % 64 == 0x20", "at"))
	var notes []string
	s := sweep(k, scenario("canary"), t.TempDir(), 1, 16, 2)
	s.Note = func(format string, a ...any) { notes = append(notes, fmt.Sprintf(format, a...)) }
	if _, err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(notes, "16 of 16 layouts fail alike: probably not a layout bug") {
		t.Errorf("notes %q", notes)
	}
	other := scenario("canary")
	other.Verdict.Crash.Regexp = regexp.MustCompile("double fault")
	r, err := sweep(k, other, t.TempDir(), 1, 3, 1).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.Finds() != 0 || len(r.Others()) != 1 || len(r.Others()[0].Layouts) != 4 {
		t.Fatalf("%d finds, others %+v", r.Finds(), r.Others())
	}
	for _, l := range r.Others()[0].Layouts {
		if f, err := seeds.Read(filepath.Join(r.Dir, l.Path)); err != nil || f.Title != "invalid opcode in canary_reboot" {
			t.Errorf("saved as %q, %v", f.Title, err)
		}
	}
}

// lld's own padding and the emulation of it move functions alike.
func TestTextIsLLD(t *testing.T) {
	slow(t)
	t.Parallel()
	k := tiny(t, nil)
	sections, err := k.Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l := linkerOf(t, k)
	compared := 0
	for _, seed := range []uint32{0, 1, 2, 3, 7, 1000, math.MaxUint32} {
		var functions [2]map[string]uint64
		for i, strategy := range []layout.Strategy{layout.Text, layout.LLD} {
			image, err := l.Link(t.Context(), strategy.Plan(seed, sections))
			if err != nil {
				t.Fatal(err)
			}
			functions[i] = symbols(t, image.Path)
		}
		for name, at := range functions[0] {
			if strings.HasPrefix(name, "fill") || name == "victim" || name == "run" {
				compared++
				text, lld := at-functions[0]["fill110"], functions[1][name]-functions[1]["fill110"]
				if text != lld {
					t.Errorf("seed %d: %s is %#x behind the first function by strategy text, %#x by lld", seed, name, text, lld)
				}
			}
		}
	}
	if compared < 7*300 {
		t.Errorf("only %d functions were compared", compared)
	}
}

// Strategy shuffle gives functions the order that lld gives them.
func TestShuffleIsLLD(t *testing.T) {
	t.Parallel()
	k := tiny(t, nil)
	sections, err := k.Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, seed := range []uint32{1, 2, 77, 1 << 31, math.MaxUint32} {
		out := filepath.Join(t.TempDir(), "vmlinux")
		cmd := exec.Command(filepath.Join(k.Toolchain.Dir, "ld.lld"), "-m", "elf_x86_64", "-z", "max-page-size=0x1000", "--build-id=none",
			fmt.Sprintf("--shuffle-sections=.text.[!.]*=%d", int32(seed)), "--script=include/vmlinux.lds", "-o", out, "vmlinux.o")
		cmd.Dir = k.Objtree
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		lld := symbols(t, out)
		addresses, err := layout.Place(sections, layout.Shuffle.Plan(seed, sections))
		if err != nil {
			t.Fatal(err)
		}
		moved := 0
		for i, s := range sections {
			if s.Output != ".text" || s.Function == "" {
				continue
			}
			if at := addresses[i] + s.Entry; at != lld[s.Function] {
				t.Fatalf("seed %d: %s is at %#x, lld has it at %#x", seed, s.Function, at, lld[s.Function])
			}
			if addresses[i] != s.Address {
				moved++
			}
		}
		if moved < 250 {
			t.Errorf("seed %d moves only %d functions", seed, moved)
		}
	}
}

// symbols are the addresses of an image's functions.
func symbols(t testing.TB, path string) map[string]uint64 {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	list, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]uint64{}
	for _, s := range list {
		out[s.Name] = s.Value
	}
	return out
}

// What auto stands for is decided by a real link.
func TestAuto(t *testing.T) {
	slow(t)
	t.Parallel()
	edit := func(from, to string) func(string) { return replacing(t, "vmlinux.lds", from, to) }
	for _, test := range []struct {
		name string
		edit func(string)
		ask  layout.Strategy
		want layout.Strategy
		note string
	}{
		{"links", nil, layout.Auto, layout.LLD, ""},
		{"location counter", edit("*(.text..by_hand)", ". = _stext + 0x4700; *(.text..by_hand)"), layout.Auto, layout.Cover, "unable to move location counter"},
		{"assertion", edit("/DISCARD/", `ASSERT(_etext - _stext < 0x4700, "SRSO function pair won't alias") /DISCARD/`), layout.Auto, layout.Cover, "SRSO function pair won't alias"},
		{"tables", edit("*(.rodata .rodata.*)", "__start_table = .; *(.rodata .rodata.*) __stop_table = .;"), layout.Auto, layout.Cover, "the 1 tables that the linker builds"},
		{"tables, by hand", edit("*(.rodata .rodata.*)", "__start_table = .; *(.rodata .rodata.*) __stop_table = .;"), layout.LLD, layout.LLD, "expect false crashes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var notes []string
			s := sweep(tiny(t, test.edit), scenario("off"), t.TempDir(), 1, 1, 1)
			s.Strategy = test.ask
			s.Note = func(format string, a ...any) { notes = append(notes, fmt.Sprintf(format, a...)) }
			r, err := s.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if r.Strategy != test.want || !strings.Contains(strings.Join(notes, "\n"), test.note) {
				t.Errorf("strategy %s, notes %q; want %s, %q", r.Strategy, notes, test.want, test.note)
			}
		})
	}
}

// A flag that silently does nothing would make every layout the baseline.
func TestPaddingThatDoesNothing(t *testing.T) {
	slow(t)
	t.Parallel()
	// An lld that knows the flag and does not act on it.
	k := tiny(t, replacing(t, "scripts/link-vmlinux.sh", "${LD} ${KBUILD_LDFLAGS} ${LDFLAGS_vmlinux}",
		"${LD} ${KBUILD_LDFLAGS} $(echo ${LDFLAGS_vmlinux} | sed s/--randomize-section-padding=.*//)"))
	s := sweep(k, scenario("off"), t.TempDir(), 7, 12, 1)
	s.Strategy = layout.LLD
	r, err := s.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "layout of seed 10 equals the baseline, as those of 3 other seeds: the padding does nothing") || r.Count(qemu.Duplicate) != 3 {
		t.Errorf("error %v, %+v", err, r)
	}
}

// Two seeds with one layout are counted once, said, and do not end the sweep.
func TestDuplicateLayout(t *testing.T) {
	slow(t)
	t.Parallel()
	k := tiny(t, replacing(t, "scripts/link-vmlinux.sh", "${LD} ${KBUILD_LDFLAGS} ${LDFLAGS_vmlinux}",
		"${LD} ${KBUILD_LDFLAGS} $(echo ${LDFLAGS_vmlinux} | sed s/-padding=[678]/-padding=5/)"))
	dir := t.TempDir()
	for range 2 { // the second takes all from the journal
		var notes []string
		s := sweep(k, scenario("off"), dir, 6, 9, 1)
		s.Strategy = layout.LLD
		s.Note = func(format string, a ...any) { notes = append(notes, fmt.Sprintf(format, a...)) }
		r, err := s.Run(t.Context())
		if err != nil || len(r.Layouts) != 4 || r.Count(qemu.Duplicate) != 2 || r.Count(qemu.Pass) != 2 || r.Layouts[2].Note != "the layout of seed 6" {
			t.Fatalf("error %v, %+v", err, r)
		}
		if r.Coverage.Layouts != 1+2-2*min(1, 4-r.Tried) { // the images of an earlier run are gone
			t.Errorf("coverage of %d layouts", r.Coverage.Layouts)
		}
		if r.Tried > 0 != slices.Contains(notes, "seed 8: the layout of seed 6: counted once") {
			t.Errorf("%d tried, notes %q", r.Tried, notes)
		}
	}
}

// Layouts are the same by their addresses, and in a journal of version 1, which has none,
// by their images: a sweep that goes on with one counts each layout once all the same.
func TestSameAddresses(t *testing.T) {
	t.Parallel()
	k := paperKernel(12) // of few functions many seeds pad the same
	for i := range k.layout {
		k.layout[i].Segment = -1
	}
	run := func(dir string, last uint32) *evidence.Report {
		g := fuzz.NewGuest(scenario(""), "")
		g.Run = func(qemu.Machine, context.Context, qemu.Expect) (qemu.Result, error) {
			return qemu.Result{Kind: qemu.Pass}, nil
		}
		s := &fuzz.Sweep{Kernel: k, Guest: g, Strategy: layout.Text, Dir: dir, First: 1, Last: last, Workers: 1,
			Template: seeds.Template{Scenario: scenario(""), Tools: seeds.Tools{Clang: "22", LLD: "22", QEMU: "7.2"}, Object: strings.Repeat("0", 64), Initrd: strings.Repeat("0", 64)},
			Note:     func(string, ...any) {}, Step: func(fuzz.Tally) {}}
		r, err := s.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	whole := run(t.TempDir(), 40)
	of := map[string]string{} // addresses -> the layout
	for _, r := range append([]seeds.Record{whole.Baseline}, whole.Layouts...) {
		same, ok := of[r.Addresses]
		if r.Addresses == "" || ok != (r.Kind == qemu.Duplicate) || ok && r.Note != "the layout of "+same {
			t.Errorf("%+v, and its addresses are those of %q", r, same)
		}
		if (r.Image != "") != (r.Path != "" || r.Layout == seeds.Baseline) {
			t.Errorf("%+v: the baseline's image has a digest, and one that is saved", r)
		}
		if !ok {
			of[r.Addresses] = r.Layout.Name()
		}
	}
	if n := whole.Count(qemu.Duplicate); n < 5 || n > 30 {
		t.Fatalf("%d of %d layouts are another's", n, len(whole.Layouts))
	}

	dir := t.TempDir()
	half := run(dir, 20)
	path := filepath.Join(half.Dir, seeds.Shard{}.Journal())
	h, records, _, err := seeds.ReadJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	l, err := k.Linker()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var old bytes.Buffer
	line := func(v any) {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&old, "%08x %s\n", crc32.ChecksumIEEE(text), text)
	}
	old.WriteString("unlucky-journal 1\n")
	line(h)
	for _, r := range records {
		var plan layout.Plan
		if seed, ok := r.Layout.Seed(); ok {
			plan = layout.Text.Plan(seed, k.layout)
		}
		image, err := l.Link(t.Context(), plan)
		if err != nil {
			t.Fatal(err)
		}
		if r.Image, err = image.Digest(); err != nil {
			t.Fatal(err)
		}
		r.Addresses = ""
		line(r)
	}
	if err := os.WriteFile(path, old.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	text := func(r *evidence.Report) (s string) {
		for _, l := range r.Layouts {
			s += fmt.Sprintln(l.Layout, l.Kind, l.Note)
		}
		return s
	}
	if got := run(dir, 40); text(got) != text(whole) || got.Tried != 20 {
		t.Errorf("of %d layouts tried:\n%swant\n%s", got.Tried, text(got), text(whole))
	}
	if got := run(dir, 40); text(got) != text(whole) || got.Tried != 0 {
		t.Errorf("again:\n%swant\n%s", text(got), text(whole))
	}
}

// Changed tools, objects and files are what a replay that differs is explained by.
func TestRelinkExplains(t *testing.T) {
	slow(t)
	t.Parallel()
	k := tiny(t, nil)
	s := sweep(k, scenario("canary"), t.TempDir(), 1, 8, 1)
	r, err := s.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(r.Layouts, func(l seeds.Record) bool { return l.Path != "" })
	saved, err := seeds.Read(filepath.Join(r.Dir, r.Layouts[i].Path))
	if err != nil {
		t.Fatal(err)
	}
	l := linkerOf(t, k)
	for _, test := range []struct {
		name, want string
		edit       func(*seeds.File)
	}{
		{"object", "clang was 21.1.0 and is " + k.Clang, func(f *seeds.File) { f.Digests.Object, f.Tools.Clang = strings.Repeat("1", 64), "21.1.0" }},
		{"object, same tools", "source", func(f *seeds.File) { f.Digests.Object = strings.Repeat("1", 64) }},
		{"plan", "edited", func(f *seeds.File) { f.Layout = seeds.Seed(99) }},
		{"image", "lld was 21.1.0 and is " + k.LLD, func(f *seeds.File) { f.Digests.Image, f.Tools.LLD = strings.Repeat("1", 64), "21.1.0" }},
	} {
		f := saved
		test.edit(&f)
		if _, err := fuzz.Relink(t.Context(), f, k, l, k.Digest, s.Template.Tools); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q", test.name, err, test.want)
		}
	}
	// A plan that is written out and read back is linked without its seed.
	plan, err := fuzz.PlanOf(t.Context(), saved, k)
	if err != nil {
		t.Fatal(err)
	}
	explicit := saved
	explicit.Plan, explicit.Layout = &plan, seeds.Baseline
	data, err := explicit.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "explicit.yaml")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	back, err := seeds.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back.Plan, &plan) {
		t.Error("the plan changed on its way through the file")
	}
	if _, err := fuzz.Relink(t.Context(), back, k, l, k.Digest, s.Template.Tools); err != nil {
		t.Error(err)
	}
}

// BenchmarkSweep is the whole of a layout: plan, padding, link, boot, verdict,
// journal.
func BenchmarkSweep(b *testing.B) {
	s := sweep(tiny(b, nil), scenario("canary=off"), b.TempDir(), 1, uint32(b.N), 2)
	r, err := s.Run(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(r.PerHour(), "layouts/h")
}

// BenchmarkPlan is the plan of a seed, for as many sections as a small kernel
// and x86_64_defconfig have.
func BenchmarkPlan(b *testing.B) {
	for _, functions := range []int{10_808, 56_853} {
		b.Run(fmt.Sprint(functions), func(b *testing.B) {
			sections := make([]layout.Section, functions)
			for i := range sections {
				sections[i] = layout.Section{Name: fmt.Sprint(".text.f", i), Output: ".text", Align: 16, Moves: true}
			}
			for seed := uint32(0); b.Loop(); seed++ {
				layout.Text.Plan(seed, sections)
			}
		})
	}
}

// counting is a kernel whose links are counted.
type counting struct {
	kernel
	links atomic.Int64
}

type countingLinker struct {
	fuzz.Linker
	links *atomic.Int64
}

func (k *counting) Linker() (fuzz.Linker, error) {
	l, err := k.kernel.Linker()
	return countingLinker{Linker: l, links: &k.links}, err
}

func (l countingLinker) Link(ctx context.Context, p layout.Plan) (linker.Image, error) {
	defer l.links.Add(1)
	return l.Linker.Link(ctx, p)
}

// The next layout is linked while one boots, and no further one; an image is
// removed once it has its verdict.
func TestSweepOverlaps(t *testing.T) {
	slow(t)
	t.Parallel()
	k := &counting{kernel: tiny(t, nil)}
	s := sweep(k.kernel, scenario("off"), t.TempDir(), 1, 6, 1)
	s.Kernel = k
	var images []string
	s.Guest.Run = func(m qemu.Machine, ctx context.Context, e qemu.Expect) (qemu.Result, error) {
		again := slices.Contains(images, m.Kernel)             // after a hang, on a loaded machine
		if n := int64(len(images)); 0 < n && n < 6 && !again { // not the baseline, nor the last
			for k.links.Load() < n+2 && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(50 * time.Millisecond)
			if links := k.links.Load(); links != n+2 {
				t.Errorf("boot %d: %d layouts are linked, want %d", n, links, n+2)
			}
		}
		for _, path := range images {
			if _, err := os.Stat(path); err == nil && path != m.Kernel {
				t.Errorf("%s is still there at boot %d", path, len(images))
			}
		}
		if !again {
			images = append(images, m.Kernel)
		}
		return m.Boot(ctx, e)
	}
	if r, err := s.Run(t.Context()); err != nil || r.Count(qemu.Pass) != 6 {
		t.Error(err)
	}
}

// naive counts coverage by sets of addresses and nothing else.
type naive struct {
	layout     []layout.Section
	functions  []int
	residues   map[uint64]map[string]map[uint64]bool // modulus, section
	neighbours map[string]bool
	layouts    int
}

func newNaive(sections []layout.Section) *naive {
	n := &naive{layout: sections, neighbours: map[string]bool{}, residues: map[uint64]map[string]map[uint64]bool{64: {}, 256: {}, 4096: {}}}
	for i, s := range sections {
		if layout.Movable(sections, i) && s.Function != "" {
			n.functions = append(n.functions, i)
		}
	}
	return n
}

// add takes an image by its symbols. Neighbours have the baseline's order.
func (n *naive) add(symbols map[string]uint64) {
	n.layouts++
	var before *layout.Section
	for _, i := range n.functions {
		s := &n.layout[i]
		for modulus, sections := range n.residues {
			if sections[s.Name] == nil {
				sections[s.Name] = map[uint64]bool{}
			}
			sections[s.Name][symbols[s.Function]%modulus] = true
		}
		if before != nil {
			gap := symbols[s.Function] - s.Entry - (symbols[before.Function] - before.Entry + before.Size)
			if gap < n.layout[i].Alignment() {
				n.neighbours[before.Name+" "+s.Name] = true
			}
		}
		before = s
	}
}

func (n *naive) check(t *testing.T, got *evidence.Totals) {
	t.Helper()
	if got == nil {
		t.Fatal("no coverage")
	}
	want := evidence.Totals{Functions: len(n.functions), Layouts: n.layouts, Fixed: got.Fixed}
	for m, modulus := range []uint64{64, 256, 4096} {
		r := evidence.Residues{Modulus: modulus}
		for _, i := range n.functions {
			r.Of += int(max(1, modulus/n.layout[i].Alignment()))
		}
		for _, set := range n.residues[modulus] {
			r.Seen += len(set)
		}
		want.Residues[m] = r
	}
	want.Neighbours.Seen, want.Neighbours.Baseline = len(n.neighbours), got.Neighbours.Baseline
	if *got != want || len(n.functions) == 0 {
		t.Errorf("coverage %+v, want %+v", *got, want)
	}
}

// A further sweep of the same kernel adds to the coverage of the first, and
// what it had is told before it begins.
func TestCoverageGrows(t *testing.T) {
	slow(t)
	t.Parallel()
	k := tiny(t, nil)
	run := func(dir string, strategy layout.Strategy, first, last uint32) (evidence.Totals, string) {
		t.Helper()
		s := sweep(k, scenario("off"), dir, first, last, 2)
		s.Strategy = strategy
		var notes []string
		s.Note = func(format string, a ...any) { notes = append(notes, fmt.Sprintf(format, a...)) }
		recalled := 0
		s.Recall = func(done, total int) { recalled = done }
		var tallies []evidence.Totals
		s.Step = func(tally fuzz.Tally) { tallies = append(tallies, *tally.Coverage) }
		r, err := s.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if before := tallies[0].Layouts; strategy != layout.LLD && before != max(recalled, 1) {
			t.Errorf("seeds %d to %d: begins with %d layouts, told of %d", first, last, before, recalled)
		}
		for i, tally := range tallies[1:] {
			if tally.Layouts < tallies[i].Layouts || tally.Layouts < i+2 {
				t.Errorf("after %d layouts coverage %+v, before it %+v", i+1, tally, tallies[i])
			}
		}
		if last := tallies[len(tallies)-1]; last != *r.Coverage {
			t.Errorf("seeds %d to %d: at last %+v, reported %+v", first, last, last, *r.Coverage)
		}
		return *r.Coverage, strings.Join(notes, "\n")
	}
	want, _ := run(t.TempDir(), layout.Cover, 1, 8)
	dir := t.TempDir()
	half, _ := run(dir, layout.Cover, 1, 4)
	got, _ := run(dir, layout.Cover, 5, 8)
	if got != want || half.Residues[1].Seen >= got.Residues[1].Seen || got.Layouts != 9 {
		t.Errorf("in two halves %+v, at once %+v", got, want)
	}

	// lld alone knows where it puts what.
	dir = t.TempDir()
	first, notes := run(dir, layout.LLD, 1, 3)
	if first.Layouts != 4 || first.Residues[0].Seen <= first.Functions || strings.Contains(notes, "coverage") {
		t.Errorf("strategy lld: coverage %+v, notes %q", first, notes)
	}
	then, notes := run(dir, layout.LLD, 4, 5)
	if then.Layouts != 3 || strings.Count(notes, "coverage: 3 layouts of earlier runs are not counted") != 1 {
		t.Errorf("strategy lld, again: coverage %+v, notes %q", then, notes)
	}
}

// A layout that is not where its plan puts it ends the sweep, as a fault of the
// program: here an alignment that the model of the linker script does not know.
func TestLayoutOtherThanPlanned(t *testing.T) {
	t.Parallel()
	k := tiny(t, replacing(t, "vmlinux.lds", "*(.text .text.[0-9a-zA-Z_]*)",
		"*(.text .text.fill1*) . = ALIGN(2 * 8); *(.text.[0-9a-zA-Z_]*)"))
	dir := t.TempDir()
	r, err := sweep(k, scenario("off"), dir, 1, 8, 1).Run(t.Context())
	ends := func(err error) bool {
		var hinted *host.HintError
		return errors.As(err, &hinted) && strings.Contains(hinted.Hint, "a fault of unlucky, and no verdict: please report it")
	}
	if !ends(err) {
		t.Fatalf("error %v", err)
	}
	for _, l := range r.Layouts {
		if l.Kind != qemu.Pass {
			t.Errorf("it became a verdict: %+v", l)
		}
	}
	again, err := sweep(k, scenario("off"), dir, 1, 8, 1).Run(t.Context())
	if !ends(err) || len(again.Layouts) < len(r.Layouts) {
		t.Errorf("the same sweep again: error %v, %+v", err, again.Layouts)
	}
}

// Scripts as those of 6.18 and later, with fixed places at the start of .text and
// pages between functions: all layouts are as planned, padded and in other orders
// (the seeds from 41 on), and by paddings what is not fixed comes to all its residues.
func TestFixedPlaces(t *testing.T) {
	slow(t)
	t.Parallel()
	k := tiny(t, replacing(t, "vmlinux.lds", "*(.head.text)\n\t\t*(.text.hot .text.hot.*)\n\t\t*(.text .text.[0-9a-zA-Z_]*)\n\t\t*(.text..by_hand)",
		`. = ALIGN((1 << 16)); *(.head.text)
		. = start | (1 << 10) | (1 << 14); *(.text..by_hand)
		. = ALIGN(((1)<<(12))); *(.text.fill1*)
		. = ALIGN((1 << 12)); *(.text.fill2*) . = ALIGN(16);
		*(.text .text.[0-9a-zA-Z_]*)`))
	for _, first := range []uint32{1, 41, 513, 1025} {
		s := sweep(k, scenario("off"), t.TempDir(), first, first+7, 2)
		s.Strategy = layout.Cover
		r, err := s.Run(t.Context())
		if err != nil || r.Count(qemu.Pass)+r.Count(qemu.Duplicate) != 8 || r.Count(qemu.Pass) < 7 {
			t.Fatalf("%v, %+v", err, r)
		}
		if c := r.Coverage; c.Fixed != 4 || first != 41 && c.Residues[0].Seen != c.Residues[0].Of {
			t.Errorf("seeds from %d: %+v", first, c)
		}
	}
}

// A folder whose layouts were those of another linker script is refused.
func TestOtherScript(t *testing.T) {
	slow(t)
	t.Parallel()
	k, dir := tiny(t, nil), t.TempDir()
	if _, err := sweep(k, scenario("off"), dir, 1, 1, 1).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	other := tiny(t, replacing(t, "vmlinux.lds", "*(.text..by_hand)", "*(.text..by_hand) . = . + 0x100;"))
	if other.Digest != k.Digest {
		t.Fatal("the script is part of vmlinux.o")
	}
	if _, err := sweep(other, scenario("off"), dir, 2, 2, 1).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "laid out otherwise") {
		t.Errorf("error %v", err)
	}
}

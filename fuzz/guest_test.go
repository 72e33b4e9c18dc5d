package fuzz_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"unlucky/arch"
	"unlucky/fuzz"
	"unlucky/fuzz/evidence"
	"unlucky/qemu"
	"unlucky/qemu/oops"
	"unlucky/seeds"
)

// boots is a run of boots that cannot be had from a real QEMU at will: each
// call takes the next result, and the last one again and again.
type boots struct {
	results []qemu.Result
	calls   []string // accelerator and limit of each
}

func (b *boots) run(m qemu.Machine, _ context.Context, e qemu.Expect) (qemu.Result, error) {
	b.calls = append(b.calls, fmt.Sprint(m.Accel, " ", m.CPU, " ", e.Limit))
	r := b.results[min(len(b.calls), len(b.results))-1]
	return r, nil
}

var (
	pass    = qemu.Result{Kind: qemu.Pass}
	hang    = qemu.Result{Kind: qemu.Hang, Title: "hang: no output"}
	infra   = qemu.Result{Kind: qemu.Infra, Reason: "KVM internal error"}
	crash   = qemu.Result{Kind: qemu.Crash, Title: "kernel BUG in f", Report: oops.Report{Title: "kernel BUG in f"}}
	refused = qemu.Result{Kind: qemu.Infra, Reason: "QEMU exit status 1: unable to find CPU model 'nosuch'"}
	exits   = qemu.Result{Kind: qemu.Crash, Title: "unexpected exit"}
)

func TestGuestBoot(t *testing.T) {
	for _, test := range []struct {
		name    string
		results []qemu.Result
		want    qemu.Kind
		calls   int
	}{
		{"pass", []qemu.Result{pass}, qemu.Pass, 1},
		{"crash", []qemu.Result{crash}, qemu.Crash, 1},
		{"hang once", []qemu.Result{hang, pass}, qemu.Pass, 2},
		{"hang", []qemu.Result{hang}, qemu.Hang, 2},
		{"slow crash", []qemu.Result{hang, crash}, qemu.Crash, 2},
		{"infra once", []qemu.Result{infra, crash}, qemu.Crash, 2},
		{"infra", []qemu.Result{infra}, qemu.Infra, 3},
		{"hang, then infra once", []qemu.Result{hang, infra, hang}, qemu.Hang, 3},
	} {
		b := &boots{results: test.results}
		g := fuzz.NewGuest(scenario(""), "")
		g.Run = b.run
		r, err := g.Boot(t.Context(), "vmlinux")
		if err != nil || r.Kind != test.want || len(b.calls) != test.calls {
			t.Errorf("%s: %s after %d boots, %v; want %s after %d", test.name, r.Kind, len(b.calls), err, test.want, test.calls)
		}
		if test.results[0].Kind == qemu.Hang && !strings.HasSuffix(b.calls[1], (40*time.Second).String()) {
			t.Errorf("%s: the second boot has %s, want twice the limit", test.name, b.calls[1])
		}
	}
}

// Each boot of a command has a board of its own, the one that has been free for the
// longest; so the tries of a boot go round the boards.
func TestGuestSlots(t *testing.T) {
	s := scenario("")
	s.Guest.Command, s.Guest.Slots = "boot {image}", 3
	g := fuzz.NewGuest(s, "")
	var mu sync.Mutex
	busy, most, order := map[string]bool{}, 0, ""
	full := make(chan struct{})
	g.Run = func(m qemu.Machine, ctx context.Context, _ qemu.Expect) (qemu.Result, error) {
		mu.Lock()
		if busy[m.Slot] {
			t.Errorf("board %s boots two images", m.Slot)
		}
		busy[m.Slot] = true
		if most = max(most, len(busy)); most == 3 && full != nil {
			close(full)
			full = nil
		}
		wait := full
		mu.Unlock()
		if wait != nil {
			<-wait
		}
		mu.Lock()
		defer mu.Unlock()
		delete(busy, m.Slot)
		return pass, nil
	}
	var boots sync.WaitGroup
	for range 9 {
		boots.Go(func() {
			if _, err := g.Boot(t.Context(), "vmlinux"); err != nil {
				t.Error(err)
			}
		})
	}
	boots.Wait()
	if most != 3 {
		t.Errorf("%d boards were used at a time, want 3", most)
	}

	g = fuzz.NewGuest(s, "")
	g.Run = func(m qemu.Machine, _ context.Context, _ qemu.Expect) (qemu.Result, error) {
		order += m.Slot
		return infra, nil
	}
	if _, err := g.Boot(t.Context(), "vmlinux"); err != nil || order != "012" {
		t.Errorf("tried boards %s, %v; want each once", order, err)
	}
}

func TestSettle(t *testing.T) {
	if err := qemu.KVM(); err != nil {
		t.Logf("NOT TESTED: choosing between KVM and TCG, as there is no KVM here: %v", err)
		return
	}
	for _, test := range []struct {
		name    string
		results []qemu.Result
		accel   string
		kind    qemu.Kind
		note    string
	}{
		{"works", []qemu.Result{pass}, "kvm", qemu.Pass, ""},
		{"crash that the guest prints", []qemu.Result{crash}, "kvm", qemu.Crash, ""},
		{"QEMU's own evidence", []qemu.Result{infra, pass}, "tcg", qemu.Pass, "KVM internal error"},
		{"refused by QEMU", []qemu.Result{refused}, "tcg", qemu.Infra, ""},
		{"refused under KVM, then by TCG otherwise", []qemu.Result{infra, refused}, "tcg", qemu.Infra, "KVM internal error"},
		{"silent under KVM only", []qemu.Result{hang, pass}, "tcg", qemu.Pass, "hang: no output"},
		{"exits under KVM only", []qemu.Result{exits, pass}, "tcg", qemu.Pass, "unexpected exit"},
		{"hangs everywhere", []qemu.Result{hang}, "kvm", qemu.Hang, ""},
		{"exits everywhere", []qemu.Result{exits}, "kvm", qemu.Crash, ""},
	} {
		b := &boots{results: test.results}
		s := scenario("")
		s.Guest.Accel, s.Guest.CPU = "auto", "host"
		g := fuzz.NewGuest(s, "")
		g.Run = b.run
		var notes []string
		r, err := g.Settle(t.Context(), "vmlinux", func(format string, a ...any) { notes = append(notes, fmt.Sprintf(format, a...)) })
		if err != nil || r.Kind != test.kind || g.Machine.Accel != test.accel || !strings.Contains(strings.Join(notes, "\n"), test.note) || test.note == "" && notes != nil {
			t.Errorf("%s: %s on %s, %v, notes %q; want %s on %s", test.name, r.Kind, g.Machine.Accel, err, notes, test.kind, test.accel)
		}
		if cpu := map[string]string{"kvm": "host", "tcg": "max"}[test.accel]; g.Machine.CPU != cpu {
			t.Errorf("%s: CPU %s, want %s", test.name, g.Machine.CPU, cpu)
		}
	}
}

// QEMU failing again and again is no verdict: the sweep stops and says so, and
// the layout is done again by the next run.
func TestSweepInfra(t *testing.T) {
	slow(t)
	k, dir := tiny(t, nil), t.TempDir()
	s := sweep(k, scenario("canary"), dir, 1, 4, 1)
	s.Guest.Run = (&boots{results: []qemu.Result{pass, pass, infra}}).run
	r, err := s.Run(t.Context())
	var failed *fuzz.InfraError
	if !errors.As(err, &failed) || !strings.Contains(err.Error(), "KVM internal error") {
		t.Fatalf("error %v", err)
	}
	if r.Tried != 1 {
		t.Errorf("%d layouts tried, want the one before QEMU failed", r.Tried)
	}
	s = sweep(k, scenario("canary"), dir, 1, 4, 1)
	if r, err = s.Run(t.Context()); err != nil || r.Tried != 3 {
		t.Errorf("the next run tried %d, %v; want the other 3", r.Tried, err)
	}
}

// vanishes is KVM until it has run some boots; TCG boots in its place.
type vanishes struct {
	after atomic.Int64
	boots atomic.Int64
}

func (v *vanishes) run(m qemu.Machine, ctx context.Context, e qemu.Expect) (qemu.Result, error) {
	if n := v.boots.Add(1); m.Accel == "kvm" && n > v.after.Load() {
		return qemu.Result{Kind: qemu.Infra, Reason: "Could not access KVM kernel module: No such file or directory"}, nil
	}
	m.Accel = "tcg"
	return m.Boot(ctx, e)
}

// TestKVMVanishes takes KVM away in the middle of a sweep, between the boots
// of one layout too. What was found is kept, and nothing is there twice
// once KVM is back.
func TestKVMVanishes(t *testing.T) {
	slow(t)
	t.Parallel()
	k := tiny(t, nil)
	kvm := scenario("canary")
	kvm.Guest.Accel = "kvm"
	whole := sweep(k, kvm, t.TempDir(), 0, 15, 2)
	whole.Guest.Run = (&vanishes{}).forever().run
	want, err := whole.Run(t.Context())
	if err != nil || want.Finds() == 0 {
		t.Fatalf("%v:\n%s", err, verdicts(want))
	}

	dir := t.TempDir()
	tried := 0
	for after := int64(1); ; after += 3 {
		if after > 60 {
			t.Fatal("the sweep never ends")
		}
		s := sweep(k, kvm, dir, 0, 15, 2)
		v := new(vanishes)
		v.after.Store(after)
		s.Guest.Run = v.run
		asRoot := 0
		s.Note = func(format string, _ ...any) { asRoot += strings.Count(format, "QEMU runs as root") }
		r, err := s.Run(t.Context())
		if _, must := s.Guest.Machine.User(); (asRoot == 1) != (must != nil) || asRoot > 1 {
			t.Errorf("told %d times that QEMU runs as root: %v", asRoot, must)
		}
		if r != nil {
			tried += r.Tried
		}
		if err == nil {
			if verdicts(r) != verdicts(want) {
				t.Errorf("verdicts\n%swant\n%s", verdicts(r), verdicts(want))
			}
			checkOnce(t, r)
			break
		}
		if failed := new(fuzz.InfraError); !errors.As(err, &failed) || !strings.Contains(err.Error(), "Could not access KVM") {
			t.Fatalf("error %v", err)
		}
		// Three for a layout, of those under way or linked by then.
		if n := v.boots.Load() - after; n > 6*3 {
			t.Errorf("%d boots after KVM had gone", n)
		}
		if r != nil {
			checkOnce(t, r)
		}
	}
	if tried != len(want.Layouts) {
		t.Errorf("%d layouts tried in all, want each of %d once", tried, len(want.Layouts))
	}

	tcg := scenario("canary")
	_, err = sweep(k, tcg, dir, 0, 15, 2).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "accelerator (was \"kvm\", is \"tcg\")") || !strings.Contains(err.Error(), "use another -o") {
		t.Errorf("under TCG: %v", err)
	}
}

// forever is a KVM that stays.
func (v *vanishes) forever() *vanishes {
	v.after.Store(math.MaxInt64)
	return v
}

// checkOnce looks for layouts that are in the journal or saved more than once,
// and finds that are not saved.
func checkOnce(t *testing.T, r *evidence.Report) {
	t.Helper()
	_, records, damage, err := seeds.ReadJournal(filepath.Join(r.Dir, "sweep.journal"))
	if err != nil || damage != "" {
		t.Fatal(damage, err)
	}
	seen := map[seeds.ID]bool{}
	for _, rec := range records {
		if seen[rec.Layout] {
			t.Errorf("seed %s is in the journal twice", rec.Layout)
		}
		seen[rec.Layout] = true
		if rec.Path == "" {
			continue
		}
		if _, err := seeds.Read(filepath.Join(r.Dir, rec.Path)); err != nil {
			t.Error(err)
		}
	}
	for _, l := range r.Layouts {
		if !seen[l.Layout] {
			t.Errorf("seed %s is reported, and not in the journal", l.Layout)
		}
	}
	files, _ := filepath.Glob(filepath.Join(r.Dir, "*", "*.yaml"))
	saved := map[string]string{}
	for _, path := range files {
		if other := saved[filepath.Base(path)]; other != "" {
			t.Errorf("saved twice: %s and %s", path, other)
		}
		saved[filepath.Base(path)] = path
	}
}

// A CPU model is one that the accelerator has.
func TestAccelerate(t *testing.T) {
	for _, test := range []struct{ cpu, accel, want string }{
		{"host", "tcg", "max"},
		{"host", "kvm", "host"},
		{arch.ARM64.CPU, "tcg", arch.ARM64.CPU},
		{arch.ARM64.CPU, "kvm", "max"},
		{"Nehalem", "kvm", "Nehalem"},
	} {
		g, notes := fuzz.NewGuest(scenario(""), ""), 0
		g.Machine.CPU = test.cpu
		g.Accelerate(test.accel, func(string, ...any) { notes++ })
		if g.Machine.CPU != test.want || (notes > 0) != (test.want != test.cpu) {
			t.Errorf("%s under %s is %s, with %d notes; want %s", test.cpu, test.accel, g.Machine.CPU, notes, test.want)
		}
	}
}

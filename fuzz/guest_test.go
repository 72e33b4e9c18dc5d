package fuzz_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"unlucky/fuzz"
	"unlucky/qemu"
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
	pass  = qemu.Result{Kind: qemu.Pass}
	hang  = qemu.Result{Kind: qemu.Hang, Title: "hang: no output"}
	infra = qemu.Result{Kind: qemu.Infra, Reason: "KVM internal error"}
	crash = qemu.Result{Kind: qemu.Crash, Title: "kernel BUG in f", Report: qemu.Report{Title: "kernel BUG in f"}}
	exits = qemu.Result{Kind: qemu.Crash, Title: "unexpected exit"}
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
		if err != nil || r.Kind != test.kind || g.Machine.Accel != test.accel || !strings.Contains(strings.Join(notes, "\n"), test.note) {
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

package fuzz_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"unlucky/fuzz"
	"unlucky/layout"
	"unlucky/qemu"
	"unlucky/seeds"
)

// A sweep whose guests cannot be looked into says so, and gives the same verdicts.
func TestSweepAutopsy(t *testing.T) {
	k := paperKernel(100)
	run := func(look bool) (verdicts, notes string) {
		sc := scenario("")
		sc.Guest.Accel = "tcg"
		g := fuzz.NewGuest(sc, "")
		g.Run = func(m qemu.Machine, _ context.Context, _ qemu.Expect) (qemu.Result, error) {
			data, err := os.ReadFile(m.Kernel)
			if err != nil || m.RAM != nil {
				return qemu.Result{}, fmt.Errorf("RAM of %s, which is no kernel: %v", m.Kernel, err)
			}
			if r := (qemu.Result{Kind: qemu.Crash, Title: "int3 in f1"}); len(data) > 0 && data[0] < '8' {
				return r, nil
			}
			return qemu.Result{Kind: qemu.Pass}, nil
		}
		s := &fuzz.Sweep{Kernel: k, Guest: g, Strategy: layout.Cover, Dir: t.TempDir(), First: 1, Last: 12, Workers: 2, Autopsy: look, Step: func(fuzz.Tally) {},
			Template: seeds.Template{Scenario: sc, Tools: seeds.Tools{Clang: "22", LLD: "22", QEMU: "7.2"}, Object: strings.Repeat("0", 64), Initrd: strings.Repeat("0", 64)},
			Note:     func(format string, a ...any) { notes += fmt.Sprintf(format, a...) + "\n" }}
		r, err := s.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range r.Layouts {
			verdicts += fmt.Sprintln(l.Layout, l.Kind, l.Title, l.Boots, l.Crashes)
		}
		if r.Finds() == 0 || r.Bugs != nil {
			t.Errorf("%d finds, bugs %v", r.Finds(), r.Bugs)
		}
		return verdicts, notes
	}
	with, notes := run(true)
	without, silent := run(false)
	if with != without {
		t.Errorf("%s, without %s", with, without)
	}
	if !strings.Contains(notes, "no autopsy") || strings.Contains(silent, "autopsy") {
		t.Errorf("with %q, without %q", notes, silent)
	}
}

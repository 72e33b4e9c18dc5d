package fuzz_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"unlucky/fuzz"
	"unlucky/layout"
	"unlucky/linker"
	"unlucky/qemu"
	"unlucky/seeds"
)

// paper is a kernel of addresses alone: nothing is linked.
type paper struct{ layout []layout.Section }

func (k paper) Layout(context.Context) ([]layout.Section, error) { return k.layout, nil }
func (k paper) Randomizes() bool                                 { return true }
func (k paper) Tables() (int, error)                             { return 0, nil }
func (k paper) Linker() (fuzz.Linker, error) {
	dir, err := os.MkdirTemp("", "unlucky-paper-")
	return paperLinker{paper: k, dir: dir}, err
}

// paperKernel is one of n functions.
func paperKernel(n int) (k paper) {
	for i, end := 0, uint64(0x10000); i < n; i++ {
		s := layout.Section{Name: fmt.Sprint(".text.f", i), Output: ".text", Function: fmt.Sprint("f", i), Functions: 1,
			Align: 16, Address: layout.AlignUp(end, 16), Size: uint64(20 + 37*i%200), Moves: true, Index: i + 1}
		end = s.Address + s.Size
		k.layout = append(k.layout, s)
	}
	return k
}

type paperLinker struct {
	paper
	dir string
}

func (l paperLinker) Close() error { return os.RemoveAll(l.dir) }

func (l paperLinker) Link(_ context.Context, p layout.Plan) (linker.Image, error) {
	at, err := layout.Place(l.layout, p)
	if err != nil {
		return linker.Image{}, err
	}
	file, err := os.CreateTemp(l.dir, "")
	if err != nil {
		return linker.Image{}, err
	}
	_, err = file.WriteString(layout.Identity(at))
	return linker.Image{Path: file.Name(), VMLinux: file.Name(), Layout: layout.Identity(at), Addresses: at}, errors.Join(err, file.Close())
}

// TestSweepMemory: what a sweep holds grows by its records and by nothing else.
func TestSweepMemory(t *testing.T) {
	layouts, from := uint32(10_000), 1000
	if testing.Short() {
		layouts, from = 2000, 500
	}
	dir, err := os.MkdirTemp("/dev/shm", "unlucky-memory-") // some 12,000 fsyncs
	if err != nil {
		dir = t.TempDir()
	}
	defer os.RemoveAll(dir)
	k := paperKernel(300)
	sc := scenario("")
	g := fuzz.NewGuest(sc, "")
	console := []byte(strings.Repeat("a line of a console that is as long as others are\n", 4000))
	boots := 0
	g.Run = func(m qemu.Machine, _ context.Context, _ qemu.Expect) (qemu.Result, error) {
		r := qemu.Result{Kind: qemu.Pass, Console: append([]byte(nil), console...)}
		if boots++; boots%100 < 3 { // and their confirming boots
			r.Kind, r.Title = qemu.Crash, fmt.Sprintf("int3 in f%d", boots/100%20)
		}
		return r, nil
	}
	s := &fuzz.Sweep{Kernel: k, Guest: g, Strategy: layout.Cover, Dir: dir, First: 1, Last: layouts, Workers: 1,
		Template: seeds.Template{Scenario: sc, Tools: seeds.Tools{Clang: "22", LLD: "22", QEMU: "7.2"}, Object: strings.Repeat("0", 64), Initrd: strings.Repeat("0", 64)},
		Note:     func(string, ...any) {}}
	heap := map[int]int64{}
	s.Step = func(tally fuzz.Tally) {
		if tally.Tried == from || tally.Tried == int(layouts) {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			heap[tally.Tried] = int64(m.HeapAlloc)
		}
	}
	r, err := s.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Layouts) != int(layouts) || r.Finds() < int(layouts)/200 || r.Coverage == nil {
		t.Fatalf("%d layouts, %d finds", len(r.Layouts), r.Finds())
	}
	first, last := heap[from], heap[int(layouts)]
	each := (last - first) / int64(int(layouts)-from)
	t.Logf("heap in use: %d KiB after %d layouts, %d KiB after %d: %d bytes a layout; %d an hour", first>>10, from, last>>10, layouts, each, int(r.PerHour()))
	if each > 1500 {
		t.Errorf("each layout costs %d bytes for good: its record and its places in maps have some 600", each)
	}
}

package e2e

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/arch/x86/x86asm"

	"unlucky/autopsy"
	"unlucky/fuzz"
	"unlucky/layout"
	"unlucky/linker"
	"unlucky/qemu"
	"unlucky/scenarios"
)

// What is asked of autopsies of a memory that was mutated.
const (
	mutants    = 100  // of each kind
	leastNamed = 0.90 // in the function that was mutated
	mostFalse  = 1.0  // functions of a layout that passes
)

// TestMutated: of code in a passing guest's memory that is damaged where it runs, as by a
// torn, a stray or a displaced patch or a wrong displacement, an autopsy names the
// function; and none, or the one that the image says, of a guest's that passes.
func TestMutated(t *testing.T) {
	needKernels(t)
	needBuilds(t)
	t.Run("patched", func(t *testing.T) {
		s, err := scenarios.Load("testdata/patched/patched.yaml")
		if err != nil {
			t.Fatal(err)
		}
		testMutated(t, s)
	})
	t.Run("newest", func(t *testing.T) {
		source, _ := kernelSource(t, "linux-source")
		s, err := scenarios.Load("testdata/patched/traced.yaml")
		if err != nil {
			t.Fatal(err)
		}
		s.Kernel.Package = source
		testMutated(t, s)
	})
}

func testMutated(t *testing.T, s scenarios.Scenario) {
	wrong, passed := 0, 0
	for _, l := range lookInto(t, s, 33, 64, hashBefore) {
		t.Log(l)
		if !l.passed() {
			continue
		}
		passed++
		all, _ := l.names()
		for _, name := range all {
			if !slices.Contains(l.want, name) {
				wrong++
			}
		}
	}
	t.Logf("%d false functions in %d layouts that pass", wrong, passed)
	if float64(wrong) >= mostFalse*float64(passed) {
		t.Errorf("%d false functions in %d layouts that pass", wrong, passed)
	}
	dead := newDead(t, s)
	random := rand.New(rand.NewPCG(1, 2))
	for _, kind := range mutations {
		var made []mutant
		for tries := 0; len(made) < mutants && tries < 100*mutants; tries++ {
			if m, ok := dead.mutant(kind.make(dead, random)); ok {
				made = append(made, m)
			}
		}
		named, missed := dead.named(t, made)
		t.Logf("%-20s %d of %d named", kind.name, named, len(made))
		for _, m := range missed {
			t.Logf("missed: %s", m)
		}
		if len(made) < mutants || float64(named) < leastNamed*float64(len(made)) {
			t.Errorf("%s: %d of %d named, want %d mutants and %.0f %%", kind.name, named, len(made), mutants, 100*leastNamed)
		}
	}
}

// hashBefore are the functions that sealing may damage, of a kernel with the bug of
// kcfi-hash.
func hashBefore(vmlinux string) (names []string, err error) {
	pairs, err := hashPairs(vmlinux)
	for _, p := range pairs {
		var before, sealed string
		fmt.Sscan(p, &before, &sealed)
		names = append(names, before)
	}
	return names, err
}

// dead is a guest that has passed, with what it leaves.
type dead struct {
	*kernelText
	image   *autopsy.Image
	run     *autopsy.Run // as it was
	twin    *fuzz.Body
	text    uint64 // the address of .text
	disk    []byte // of .text
	memory  []byte
	ran     []int // the offsets of the instructions that have run as they are in memory
	runs    []bool
	patches [][2]int // from, to: bytes that have run and are not as they are on disk
}

// newDead boots two layouts.
func newDead(t *testing.T, s scenarios.Scenario) *dead {
	_, sections, w := openKernel(t, s.Kernel, linker.Script)
	g := guestOf(t, s)
	link := func(seed uint32) linker.Image {
		image, err := w.Link(t.Context(), layout.Cover.Plan(seed, sections))
		if err != nil {
			t.Fatal(err)
		}
		return image
	}
	image := link(1)
	twin, err := g.Look(t.Context(), image.Path, image.VMLinux, nil)
	if err != nil || twin.Err != nil || twin.Kind != qemu.Pass {
		t.Fatal(twin, err)
	}
	image = link(2)
	d := &dead{twin: twin}
	if d.kernelText, _, err = readKernelText(image.VMLinux); err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(image.VMLinux)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text := f.Section(".text")
	d.text = text.Addr
	if d.disk, err = text.Data(); err != nil {
		t.Fatal(err)
	}
	m := g.Machine
	m.Kernel = image.Path
	if m.RAM, err = qemu.NewMemory(m.MemoryMiB); err != nil {
		t.Fatal(err)
	}
	defer m.RAM.Close()
	if m.Trace, err = qemu.NewTrace([]qemu.Range{{Address: d.text, Bytes: text.Size}}); err != nil {
		t.Fatal(err)
	}
	defer m.Trace.Close()
	expect := g.Expect
	expect.Limit *= 4 // the log takes time
	r, err := m.Boot(t.Context(), expect)
	if err != nil || r.Kind != qemu.Pass {
		t.Fatalf("%v %s, %v", r.Kind, r.Title, err)
	}
	if d.image, err = autopsy.Open(image.VMLinux); err != nil {
		t.Fatal(err)
	}
	if d.run, err = d.image.Load(m.RAM); err != nil {
		t.Fatal(err)
	}
	d.memory = make([]byte, len(d.disk))
	if _, err := m.RAM.ReadAt(d.memory, int64(d.image.Physical(d.text))); err != nil {
		t.Fatal(err)
	}
	log, err := m.Trace.Read()
	if err != nil {
		t.Fatal(err)
	}
	d.takeRan(log)
	for at := 0; at < len(d.disk); at++ {
		if d.disk[at] == d.memory[at] {
			continue
		}
		to := at
		for n := at; n < min(len(d.disk), to+3); n++ {
			if d.disk[n] != d.memory[n] {
				to = n + 1
			}
		}
		if d.changes(at, d.disk[at:to]) {
			d.patches = append(d.patches, [2]int{at, to})
		}
		at = to
	}
	t.Logf("%d instructions have run, and %d patches", len(d.ran), len(d.patches))
	return d
}

// inLog matches an instruction in the log of QEMU's -d in_asm.
var inLog = regexp.MustCompile(`(?m)^0x([0-9a-f]{8,16}):  ((?:[0-9a-f]{2} )*[0-9a-f]{2})`)

// takeRan reads which instructions have run as they are in memory.
func (d *dead) takeRan(log []byte) {
	d.runs = make([]bool, len(d.memory))
	for _, m := range inLog.FindAllSubmatch(log, -1) {
		address, err := strconv.ParseUint(string(m[1]), 16, 64)
		at := int(address - d.text)
		if err != nil || address < d.text || at >= len(d.memory) || d.runs[at] {
			continue
		}
		code := []byte{}
		fmt.Sscanf(string(bytes.ReplaceAll(m[2], []byte(" "), nil)), "%x", &code)
		in, err := x86asm.Decode(d.memory[at:min(len(d.memory), at+15)], 64)
		if err != nil || in.Op == 0 || !bytes.HasPrefix(d.memory[at:], code[:min(len(code), in.Len)]) {
			continue
		}
		d.ran = append(d.ran, at)
		for n := range in.Len {
			d.runs[at+n] = true
		}
	}
}

// changes tells whether other bytes at a place are a change of code that has run; a nop
// that becomes another one is none.
func (d *dead) changes(at int, code []byte) bool {
	if idle(code) && at+len(code) <= len(d.memory) && idle(d.memory[at:at+len(code)]) {
		return false
	}
	for n, b := range code {
		if at+n < len(d.memory) && d.runs[at+n] && d.memory[at+n] != b {
			return true
		}
	}
	return false
}

// idle tells whether some code is one nop.
func idle(code []byte) bool {
	in, err := x86asm.Decode(code, 64)
	return err == nil && in.Op == x86asm.NOP && in.Len == len(code)
}

// mutant is a memory with other bytes at some place.
type mutant struct {
	at       int
	code     []byte
	function elf.Symbol
	was      []byte
}

func (m mutant) String() string {
	return fmt.Sprintf("%s at %#x in .text: % x, was % x", m.function.Name, m.at, m.code, m.was)
}

// mutant makes one of other bytes; not ok if nothing that has run is changed, or that of
// two functions is.
func (d *dead) mutant(at int, code []byte) (m mutant, ok bool) {
	if at < 0 || at+len(code) > len(d.memory) || !d.changes(at, code) {
		return m, false
	}
	f := d.function(d.text + uint64(at))
	first := f.Value <= d.text+uint64(at) && d.text+uint64(at+len(code)) <= f.Value+f.Size
	return mutant{at: at, code: code, function: f, was: d.memory[at : at+len(code)]}, first
}

// mutations are ways to damage code.
var mutations = []struct {
	name string
	make func(d *dead, r *rand.Rand) (at int, code []byte)
}{
	{"torn patch", func(d *dead, r *rand.Rand) (int, []byte) {
		p := d.patches[r.IntN(len(d.patches))]
		code := slices.Clone(d.memory[p[0]:p[1]])
		if len(code) < 2 {
			return -1, nil
		}
		if cut := 1 + r.IntN(len(code)-1); r.IntN(2) == 0 {
			copy(code[cut:], d.disk[p[0]+cut:])
		} else {
			copy(code[:cut], d.disk[p[0]:])
		}
		return p[0], code
	}},
	{"stray bytes", func(d *dead, r *rand.Rand) (int, []byte) {
		at := d.ran[r.IntN(len(d.ran))] + r.IntN(4)
		fill := []byte{0x00, 0x90, 0xff, byte(r.IntN(256))}[r.IntN(4)]
		return at, bytes.Repeat([]byte{fill}, []int{1, 2, 4, 8}[r.IntN(4)])
	}},
	{"displaced patch", func(d *dead, r *rand.Rand) (int, []byte) {
		p := d.patches[r.IntN(len(d.patches))]
		by := 1 + r.IntN(8)
		from, to := p[0], min(len(d.memory), p[1]+by)
		if r.IntN(2) == 0 {
			from, to, by = max(0, p[0]-by), p[1], 0
		}
		code := slices.Clone(d.memory[from:to])
		copy(code[p[0]-from:], d.disk[p[0]:p[1]])
		copy(code[by:], d.memory[p[0]:p[1]])
		return from, code
	}},
	{"wrong displacement", func(d *dead, r *rand.Rand) (int, []byte) {
		p := d.patches[r.IntN(len(d.patches))]
		at := slices.IndexFunc(d.memory[p[0]:p[1]], func(b byte) bool { return b == 0xe8 || b == 0xe9 })
		if at += p[0]; at < p[0] || at+5 > len(d.memory) || !d.runs[at] {
			return -1, nil
		}
		if in, err := x86asm.Decode(d.memory[at:at+5], 64); err != nil || in.Len != 5 || in.Op != x86asm.JMP && in.Op != x86asm.CALL || !slices.Contains(d.ran, at) {
			return -1, nil
		}
		code := slices.Clone(d.memory[at : at+5])
		code[1+r.IntN(2)] += byte(1 + r.IntN(255))
		return at, code
	}},
}

// named counts the mutants of which the function is named.
func (d *dead) named(t *testing.T, all []mutant) (named int, missed []mutant) {
	var next atomic.Int64
	var mu sync.Mutex
	var done sync.WaitGroup
	for range 2 {
		done.Go(func() {
			for n := next.Add(1) - 1; n < int64(len(all)); n = next.Add(1) - 1 {
				m := all[n]
				run, err := d.image.Load(d.memoryOf(m))
				if err != nil {
					t.Error(err)
					return
				}
				run.LearnFrom(d.run)
				found := slices.ContainsFunc(autopsy.Compare(run, d.twin.Run), func(a *autopsy.Damage) bool { return a.Address-m.function.Value < m.function.Size })
				mu.Lock()
				if found {
					named++
				} else {
					missed = append(missed, m)
				}
				mu.Unlock()
			}
		})
	}
	done.Wait()
	return named, missed
}

// memoryOf is the guest's memory as a mutant has it: .text, and the banner on disk.
func (d *dead) memoryOf(m mutant) io.ReaderAt {
	text := slices.Clone(d.memory)
	copy(text[m.at:], m.code)
	return mutated{d, text}
}

type mutated struct {
	*dead
	text []byte
}

// ReadAt reads what is at a physical address.
func (m mutated) ReadAt(b []byte, at int64) (int, error) {
	address := uint64(at) - m.image.Physical(m.dead.text) + m.dead.text
	if n := address - m.dead.text; n < uint64(len(m.text)) {
		return copy(b, m.text[n:]), nil
	}
	return copy(b, m.at(address, len(b))), nil
}

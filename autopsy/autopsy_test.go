package autopsy

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"unlucky/arch"
)

// kernel is a made-up image: functions f0, f1, ... of 32 bytes that end in a jump to
// the last, thunk, at a place that the table of returns lists, and are padded.
func kernel(functions int, base uint64) *Image {
	const size = 32
	i := &Image{machine: machines[arch.X86_64.Name], index: map[string]*Function{}, named: map[string]uint64{}, roots: map[uint64][]uint64{}, entered: map[uint64][]uint64{}}
	text := bytes.Repeat([]byte{0xcc}, size*(functions+1))
	for n := range functions + 1 {
		name, at := fmt.Sprintf("f%d", n), base+uint64(n*size)
		code := text[n*size:]
		copy(code, []byte{0x48, 0x89, 0xf8, 0x90}) // mov %rdi,%rax; nop
		f := &Function{Name: name, Address: at, Size: 10, key: name}
		if n == functions {
			f.Name, f.key, f.Size = "thunk", "thunk", 1
			code[0] = 0xc3
		} else {
			copy(code[4:], jmp(at+4, base+uint64(functions*size)))
			i.sites = append(i.sites, Site{Table: returns, Address: at + 4, Bytes: 6})
		}
		i.functions, i.index[f.key] = append(i.functions, f), f
		i.symbols = append(i.symbols, symbol{f.Name, f.Address})
	}
	i.longest = 6
	i.text = section{".text", base, text}
	i.allocated = []section{i.text}
	return i
}

// jmp is cs jmp, which is 6 bytes, from an address to another.
func jmp(from, to uint64) []byte {
	return binary.LittleEndian.AppendUint32([]byte{0x2e, 0xe9}, uint32(to-from-6))
}

// patched is what such a kernel makes of its returns: ret, and traps.
func patched(i *Image) *Run {
	r := &Run{Image: i, memory: bytes.Clone(i.text.data)}
	for _, s := range i.sites {
		copy(r.memory[s.Address-i.text.address:], []byte{0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc})
	}
	return r
}

func TestCompare(t *testing.T) {
	const base, other = 0xffffffff81000000, 0xffffffff81000040
	for _, test := range []struct {
		name   string
		damage func(memory []byte)
		want   string // function, why, where it leads
	}{
		{"none", func([]byte) {}, ""},
		{"a jump into padding", func(m []byte) { copy(m[2*32+4:], jmp(2*32+4, 5*32+20)[1:]) }, "f2 astray f6-0xd"},
		{"a jump to where a function begins", func(m []byte) { copy(m[2*32+4:], jmp(2*32+4, 5*32+1)[1:]) }, "f2 foreign f5"},
		{"a jump into the middle of a function", func(m []byte) { copy(m[2*32+4:], jmp(2*32+4, 5*32+3)[1:]) }, "f2 astray f5+0x2"},
		{"a byte that nobody lists", func(m []byte) { m[3*32+1] = 0x8b }, "f3 unlisted "},
		{"not patched", func(m []byte) { copy(m[4*32+4:], jmp(4*32+4, 40*32)) }, "f4 unpatched thunk"},
		{"what is never reached", func(m []byte) { m[3*32+8], m[3*32+20] = 0x11, 0x11 }, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, twin := patched(kernel(40, base)), patched(kernel(40, other))
			test.damage(r.memory)
			got := Compare(r, twin)
			var all []string
			for _, d := range got {
				all = append(all, fmt.Sprintf("%s %s %s", d.Function, d.Why, d.Leads))
			}
			if text := strings.Join(all, ", "); text != test.want {
				t.Errorf("%q, want %q", text, test.want)
			}
			if back := Compare(twin, twin); len(back) > 0 {
				t.Errorf("the twin has damage: %v", back)
			}
		})
	}
}

// TestTrampoline: a call that is traced leads to the first byte of a page that the kernel has
// allocated, or to a function, and nowhere else.
func TestTrampoline(t *testing.T) {
	const base, outside = 0xffffffff81000000, 0xffffffffa0000000
	call := func(to uint64) []byte {
		return binary.LittleEndian.AppendUint32([]byte{0xe8}, uint32(to-base-5))
	}
	traced := func(base uint64) *Run {
		i := kernel(40, base)
		copy(i.text.data, []byte{0x0f, 0x1f, 0x44, 0, 0, 0xc3})
		i.sites = i.sites[1:]
		r := patched(i)
		i.sites = slices.Insert(i.sites, 0, Site{Table: ftraceSites, Address: base, Bytes: 5, pokable: true})
		return r
	}
	for _, test := range []struct {
		to   uint64
		want string
	}{
		{outside, "[]"},
		{base + 7*32, "[]"},
		{outside + 16, "[f0+0x0 is astray: it leads to 0xffffffffa0000010]"},
		{base + 7*32 + 20, "[f0+0x0 is astray: it leads to f8-0xc]"},
	} {
		r, twin := traced(base), traced(base+0x40)
		copy(r.memory, call(test.to))
		if got := fmt.Sprint(Compare(r, twin)); got != test.want {
			t.Errorf("to %#x: %s, want %s", test.to, got, test.want)
		}
	}
}

// TestHashes: all callers of a type have the same hash in memory, whatever it is, and one that
// has another is damage; a lone one is held against what is called.
func TestHashes(t *testing.T) {
	const base = 0xffffffff81000000
	hashed := func(of func(n int) uint32) *Run {
		i := kernel(8, base)
		i.sites = nil
		r := &Run{Image: i}
		write := func(of func(n int) uint32) (text []byte) {
			text = bytes.Clone(i.text.data)
			for n := range 8 {
				copy(text[n*32:], binary.LittleEndian.AppendUint32([]byte{0x41, 0xba}, of(n)))
				copy(text[n*32+6:], []byte{0xc3})
				copy(text[n*32+16:], binary.LittleEndian.AppendUint32([]byte{0xb8}, -of(n)))
			}
			return text
		}
		for n := range uint64(8) {
			i.sites = append(i.sites, Site{Table: cfiCallers, Address: base + n*32, Bytes: 6}, Site{Table: cfiHashes, Address: base + n*32 + 16, Bytes: 5})
		}
		i.text.data = write(func(n int) uint32 { return 0x11111110 + uint32(n/7) }) // the last has its own
		i.allocated[0] = i.text
		r.memory = write(of)
		return r
	}
	right := func(n int) uint32 { return 0x22222220 + 5*uint32(n/7) }
	twin := hashed(func(n int) uint32 { return 3 * right(n) }) // another boot, other hashes
	for _, test := range []struct {
		name   string
		damage func(r *Run)
		want   string
	}{
		{"none", func(*Run) {}, "[]"},
		{"one of many", func(r *Run) { r.memory[2*32+3] ^= 0x40 }, "[f2+0x0 is foreign]"},
		{"a lone one", func(r *Run) { r.memory[7*32+4] ^= 0x40 }, "[f7+0x0 is foreign]"},
	} {
		r := hashed(right)
		test.damage(r)
		if got := fmt.Sprint(Compare(r, twin)); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
	off := func() *Run { // jumped over: what is behind is no hash
		r := hashed(right)
		for n := range 8 {
			copy(r.memory[n*32:], []byte{0xeb, 0x04, 0xb8, byte(n)})
		}
		return r
	}
	if got := Compare(off(), off()); len(got) > 0 {
		t.Errorf("switched off: %v", got)
	}
}

// TestElsewhere: what is rewritten to lead to another function is damage, however often a
// twin has a branch of that kind rewritten to lead to the same.
func TestElsewhere(t *testing.T) {
	const base = 0xffffffff81000000
	tails := func(memory func(m []byte, n int)) *Run {
		i := kernel(40, base)
		for n := range 8 { // to the next function, by what stands before it
			copy(i.text.data[n*32+4:], jmp(uint64(n*32+4), uint64(n+1)*32))
			copy(i.text.data[n*32+10:], bytes.Repeat([]byte{0x90}, 22))
		}
		r := patched(i)
		for n := range 8 {
			copy(r.memory[n*32+4:], jmp(uint64(n*32+4), uint64(n*32+10)))
			memory(r.memory, n)
		}
		return r
	}
	twin := tails(func([]byte, int) {})
	r := tails(func(m []byte, n int) {
		if n == 3 {
			copy(m[n*32+4:], jmp(uint64(n*32+4), 9*32))
		}
	})
	if got := fmt.Sprint(Compare(r, twin)); got != "[f3+0x4 is foreign: it leads to f9]" {
		t.Error(got)
	}
}

// Without a twin only what leads astray is told, and it is mended by what is on disk.
func TestAlone(t *testing.T) {
	r := patched(kernel(40, 0xffffffff81000000))
	copy(r.memory[2*32+4:], jmp(2*32+4, 5*32+20)[1:])
	r.memory[3*32+1] = 0x8b
	all := Compare(r, nil)
	if len(all) != 1 || all[0].Function != "f2" || all[0].Why != Astray {
		t.Fatalf("%v, want f2 astray", all)
	}
	got, err := r.Mended(all[0], nil)
	if want := jmp(2*32+4, 40*32); err != nil || !bytes.Equal(got, want) {
		t.Errorf("mended % x, %v; want % x", got, err, want)
	}
}

// Damage is mended by what the twin has, in this layout's terms, or, where that is
// damaged as well, by the disk's code; what is nowhere right is not mended.
func TestMended(t *testing.T) {
	const base, other = 0xffffffff81000000, 0xffffffff81000040
	damaged := func(base uint64, how func([]byte)) *Run {
		r := patched(kernel(40, base))
		how(r.memory)
		return r
	}
	astray := func(m []byte) { copy(m[2*32+4:], jmp(2*32+4, 5*32+20)[1:]) }
	thunk := func(m []byte) { copy(m[2*32+4:], jmp(2*32+4, 40*32)) }
	for _, test := range []struct {
		name       string
		here, twin func(memory []byte)
		want       []byte
	}{
		{"the twin's", astray, func([]byte) {}, []byte{0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc}},
		{"the twin's, moved", astray, thunk, jmp(2*32+4, 40*32)},
		{"the disk's", astray, func(m []byte) { copy(m[2*32+4:], jmp(2*32+4, 7*32+20)[1:]) }, jmp(2*32+4, 40*32)},
	} {
		r, twin := damaged(base, test.here), damaged(other, test.twin)
		all := Compare(r, twin)
		if len(all) != 1 {
			t.Fatalf("%s: %v", test.name, all)
		}
		got, err := r.Mended(all[0], twin)
		if err != nil || !bytes.Equal(got, test.want[:min(len(got), len(test.want))]) || len(got) < 5 {
			t.Errorf("%s: % x, %v; want % x", test.name, got, err, test.want)
		}
	}
	r, twin := damaged(base, thunk), damaged(other, astray)
	d := &Damage{Function: "f2", key: "f2", Offset: 4, Address: base + 2*32 + 4, twin: other + 2*32 + 4, Memory: r.show(base+2*32+4, 6)}
	if got, err := r.Mended(d, twin); err == nil {
		t.Errorf("% x is mended by nothing", got)
	}
}

// What has run is told by QEMU's log, and the most important stands first.
func TestMark(t *testing.T) {
	const base = 0xffffffff81000000
	r, twin := patched(kernel(40, base)), patched(kernel(40, base+64))
	for _, n := range []int{2, 4, 6} {
		copy(r.memory[n*32+4:], jmp(uint64(n*32+4), uint64((n+5)*32+20))[1:])
	}
	all := Compare(r, twin)
	log := "----------------\nIN: f4\n0xffffffff81000084:  e9 ..  jmp\n\n0xffffffff81000080:  48 89 f8\nOBJD\n0xffffffff81000044:  e9\n"
	Mark(all, []byte(log), []byte("0xffffffff810000c4: c3"))
	r.MarkTrap(all, []byte("RIP: 0010:f11+0x0/0x20\n"))
	Sort(all)
	var got []string
	for _, d := range all {
		got = append(got, fmt.Sprintf("%s %v %v", d.Function, *d.Ran, *d.TwinRan))
	}
	if want := []string{"f4 true true", "f2 true false", "f6 false false"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	extents := r.Extents(all)
	if len(extents) != 3 || extents[0] != (Extent{base + 4*32, 10}) {
		t.Errorf("extents %v", extents)
	}
	r.MarkTrap(all, []byte("unexpected opcode at f6+0x5/0xa\nf2+0x1/0xa f4+0x20/0x20"))
	if Sort(all); all[0].Function != "f6" || !all[0].Named || all[1].Named || all[2].Named {
		t.Errorf("%v, want f6, which the console names, first", all)
	}
	// What ran as it was on disk, and was damaged then, has not run.
	Mark(all, []byte("0xffffffff81000084:  2e e9 00 00 00 00  jmp\n0xffffffff81000044:  e9 22\n"), nil)
	if *all[0].Ran || *all[1].Ran || *all[2].Ran {
		t.Errorf("%v, want none that has run", all)
	}
}

// FuzzCompare: a memory of any bytes is compared to its end, and no more is told than
// is bounded.
func FuzzCompare(f *testing.F) {
	f.Add([]byte{}, uint16(0))
	f.Add(jmp(0, 77), uint16(100))
	f.Add(bytes.Repeat([]byte{0xe9}, 400), uint16(3))
	f.Fuzz(func(t *testing.T, data []byte, at uint16) {
		r, twin := patched(kernel(20, 0xffffffff81000000)), patched(kernel(20, 0xffffffff81000080))
		if int(at) < len(r.memory) {
			copy(r.memory[at:], data)
		}
		all := Compare(r, twin)
		Mark(all, data, data)
		r.MarkTrap(all, data)
		Sort(all)
		if len(all) > maxDamage+maxOfAFunction {
			t.Errorf("%d damages", len(all))
		}
	})
}

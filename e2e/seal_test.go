package e2e

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// sealHit is an instruction that sealing the function behind it overwrites.
// Linux 6.12 with cfi=kcfi zeroes the four bytes from 15 before each function
// that it seals (arch/x86/kernel/alternative.c, apply_seal_endbr). They are
// the kCFI hash, or the end of the function before where there is none.
type sealHit struct {
	Before, Sealed string // the function overwritten, and the one sealed
	Address        uint64 // of the instruction: of a jump's opcode, else the first byte that changes
	Return         bool   // it is a return: in the image a jump to __x86_return_thunk
	Lower          bool   // it begins in the lower half of a cache line, where ITS keeps a return a jump
	Harmful        bool   // who runs it does not get where it led before
	Lands          string // where a harmed jump leads instead, "sched_balance_rq+0x14f5"
}

// sealHits finds, in a linked vmlinux, what sealing overwrites inside of
// functions, under cfi=kcfi and with the return thunk of ITS. It reads the
// kernel's own tables, and does not know of other live patching: alternatives,
// static calls and branches.
func sealHits(vmlinux string) ([]sealHit, error) {
	k, address, err := readKernelText(vmlinux)
	if err != nil {
		return nil, err
	}
	table := func(name string) []uint64 { return k.table(address[name], address[name+"_end"]) }
	k.patchReturns(table("__return_sites"), address["__x86_return_thunk"], address["its_return_thunk"])
	hashes, seals := table("__cfi_sites"), table("__ibt_endbr_seal")
	if len(k.returns) == 0 || len(hashes) == 0 || len(seals) == 0 || address["its_return_thunk"] == 0 {
		return nil, fmt.Errorf("%s: %d returns, %d kCFI hashes, %d functions to seal, ITS at %#x: nothing can be told of this kernel",
			vmlinux, len(k.returns), len(hashes), len(seals), address["its_return_thunk"])
	}
	slices.Sort(hashes)
	k.calls = map[uint64]bool{}
	for at := address["__start_static_call_sites"]; at < address["__stop_static_call_sites"]; at += 8 {
		k.calls[at+relative(k.at(at, 4))] = true
	}
	var hits []sealHit
	for _, sealed := range seals {
		if _, ok := slices.BinarySearch(hashes, sealed-16); ok {
			continue
		}
		if hit, ok := k.seal(sealed); ok {
			hits = append(hits, hit)
		}
	}
	return hits, k.err
}

// hashPairs are the functions of an image, "BEFORE SEALED", between which sealing the second
// may take a byte of the displacement by which the first returns for the opcode of a kCFI
// hash (decode_preamble_hash(), 16 bytes before a function that has none), and so
// overwrites the others. Which of the thunks returns are patched to lead to is the
// CPU's; they stand side by side.
func hashPairs(vmlinux string) (pairs []string, err error) {
	k, address, err := readKernelText(vmlinux)
	if err != nil {
		return nil, err
	}
	sites := k.table(address["__return_sites"], address["__return_sites_end"])
	hashes, seals := k.table(address["__cfi_sites"], address["__cfi_sites_end"]), k.table(address["__ibt_endbr_seal"], address["__ibt_endbr_seal_end"])
	if len(sites) == 0 || len(hashes) == 0 || len(seals) == 0 {
		return nil, fmt.Errorf("%s: %d returns, %d kCFI hashes, %d functions to seal: nothing can be told of this kernel", vmlinux, len(sites), len(hashes), len(seals))
	}
	slices.Sort(sites)
	slices.Sort(hashes)
	for _, sealed := range seals {
		_, hashed := slices.BinarySearch(hashes, sealed-16)
		if hashed {
			continue
		}
		returns := false
		for site := sealed - 21; site < sealed-15; site++ {
			if _, ok := slices.BinarySearch(sites, site); !ok {
				continue
			}
			// Behind the opcode, and not the jump's last byte.
			if returns = true; site >= sealed-19 && site < sealed-16 && k.meets(site, sealed-16) {
				pairs = append(pairs, k.function(site).Name+" "+k.function(sealed).Name)
			}
		}
		opcode := k.at(sealed-16, 1)[0]
		if before := k.function(sealed - 16); !returns && before.Value <= sealed-16 && (0xb8 <= opcode && opcode <= 0xbf || k.warns(sealed-16)) {
			pairs = append(pairs, before.Name+" "+k.function(sealed).Name)
		}
	}
	return pairs, k.err
}

// warns tells whether there is a call whose fourth byte is at an address: those by which
// a kernel warns become 67 48 0f b9 3a, with a byte that is one of such opcodes.
func (k *kernelText) warns(at uint64) bool { return k.at(at-3, 1)[0] == 0xe8 }

// meets tells whether a byte of the jump that a return site is patched to may be the opcode
// of a hash.
func (k *kernelText) meets(site, at uint64) bool {
	n := uint64(5)
	if k.at(site, 1)[0] == 0x2e { // an idle segment prefix; the patched jump has none
		n = 6
	}
	thunk, ok := jump(k.at(site+n-5, 5), site+n-5)
	for near := thunk - 0x80; ok && near <= thunk+0x40; near += 0x10 {
		if b := byte((near - (site + 5)) >> (8 * (at - site - 1))); 0xb8 <= b && b <= 0xbf {
			return true
		}
	}
	return false
}

// kernelText is an image's bytes, its functions and returns.
type kernelText struct {
	spans     []span
	functions []elf.Symbol
	returns   map[uint64]int  // address -> bytes in the image
	calls     map[uint64]bool // static ones, which are written once more behind the seals
	err       error           // the first read outside of the image
}

type span struct {
	address uint64
	data    []byte
}

// readKernelText reads an image, and the addresses of its symbols.
func readKernelText(vmlinux string) (k *kernelText, address map[string]uint64, err error) {
	f, err := elf.Open(vmlinux)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	k = &kernelText{}
	for _, s := range f.Sections {
		if s.Type == elf.SHT_PROGBITS && s.Flags&elf.SHF_ALLOC != 0 {
			data, err := s.Data()
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %w", s.Name, err)
			}
			k.spans = append(k.spans, span{s.Addr, data})
		}
	}
	symbols, err := f.Symbols()
	if err != nil {
		return nil, nil, err
	}
	address = map[string]uint64{}
	for _, s := range symbols {
		address[s.Name] = s.Value
		if int(s.Section) < len(f.Sections) && f.Sections[s.Section].Flags&elf.SHF_EXECINSTR != 0 {
			k.addFunction(s)
		}
	}
	return k, address, nil
}

// at is n bytes of the image, which may be written to.
func (k *kernelText) at(address uint64, n int) []byte {
	for _, s := range k.spans {
		if size := uint64(len(s.data)); address >= s.address && uint64(n) <= size && address-s.address <= size-uint64(n) {
			return s.data[address-s.address:][:n]
		}
	}
	k.err = errors.Join(k.err, fmt.Errorf("nothing at %#x", address))
	return make([]byte, n)
}

// addFunction takes a function as it is named in the source. What clang and
// objtool name in front of one is padding, or the hash.
func (k *kernelText) addFunction(s elf.Symbol) {
	kind := elf.ST_TYPE(s.Info)
	if s.Size == 0 || kind != elf.STT_FUNC && kind != elf.STT_NOTYPE || // assembly's have no type
		strings.HasPrefix(s.Name, "__cfi_") || strings.HasPrefix(s.Name, "__pfx_") {
		return
	}
	s.Name, _, _ = strings.Cut(s.Name, ".llvm.")
	k.functions = append(k.functions, s)
}

// function is the one that an address is in, or else the next one.
func (k *kernelText) function(address uint64) (found elf.Symbol) {
	found.Value = 1<<64 - 1
	for _, f := range k.functions {
		if address < f.Value+f.Size && f.Value < found.Value {
			found = f
		}
	}
	return found
}

// table reads places relative to themselves.
func (k *kernelText) table(from, to uint64) (places []uint64) {
	for ; from < to && k.err == nil; from += 4 {
		places = append(places, from+relative(k.at(from, 4)))
	}
	return places
}

func relative(b []byte) uint64 { return uint64(int64(int32(binary.LittleEndian.Uint32(b)))) }

// patchReturns does what apply_returns() did before the functions are sealed.
func (k *kernelText) patchReturns(sites []uint64, thunk, its uint64) {
	k.returns = map[uint64]int{}
	for _, site := range sites {
		n := 5
		if k.at(site, 1)[0] == 0x2e { // an idle segment prefix; the patched jump has none
			n = 6
		}
		b := k.at(site, n)
		if to, ok := jump(b[n-5:], site+uint64(n)-5); !ok || to != thunk {
			continue
		}
		k.returns[site] = n
		for i := range b {
			b[i] = 0xcc
		}
		if site&0x20 == 0 { // cpu_wants_rethunk_at
			b[0] = 0xe9
			binary.LittleEndian.PutUint32(b[1:], uint32(its-(site+5)))
		} else {
			b[0] = 0xc3
		}
	}
}

// idle tells whether there are only int3 between two addresses.
func (k *kernelText) idle(from, to uint64) bool {
	return bytes.Count(k.at(from, int(to-from)), []byte{0xcc}) == int(to-from)
}

// jump is where a direct jump or call leads.
func jump(code []byte, address uint64) (to uint64, ok bool) {
	return address + 5 + relative(code[1:5]), code[0] == 0xe9 || code[0] == 0xe8
}

// seal tells what zeroing the hash that a function does not have overwrites.
func (k *kernelText) seal(sealed uint64) (hit sealHit, ok bool) {
	first, end := sealed-15, sealed-11
	before := k.function(first)
	for first < end && (k.at(first, 1)[0] == 0 || before.Value > first) {
		first++
		before = k.function(first)
	}
	if first == end {
		return sealHit{}, false // zero already, or padding between functions
	}
	hit = sealHit{Before: before.Name, Sealed: k.function(sealed).Name, Address: first, Harmful: true}
	live := 5 // of the instruction's bytes, those that are ever run
	for site := first; site > first-6; site-- {
		if n, ok := k.returns[site]; ok && first < site+uint64(n) {
			hit.Address, hit.Return = site, true
			if site&0x20 != 0 {
				live = 1
			}
		}
	}
	if last := before.Value + before.Size - 5; !hit.Return && last <= first {
		if _, ok := jump(k.at(last, 5), last); ok {
			hit.Address = last
		}
	}
	hit.Lower = hit.Address&0x20 == 0
	old := k.at(hit.Address, 5)
	code := bytes.Clone(old)
	for i := range code {
		if a := hit.Address + uint64(i); a >= sealed-15 && a < end {
			code[i] = 0
		}
	}
	was, _ := jump(old, hit.Address)
	to, jumps := jump(code, hit.Address)
	behind := hit.Address + uint64(k.returns[hit.Address])
	switch {
	case k.calls[hit.Address]:
		hit.Harmful = false
	case hit.Return && behind < min(end, before.Value+before.Size) && !k.idle(behind, min(end, before.Value+before.Size)):
		// What stands behind the return in the same function.
	case bytes.Equal(old[:live], code[:live]): // int3 behind a return
		hit.Harmful = false
	case jumps && was == sealed && to == end: // by way of the nops before it
		hit.Harmful = false
	case jumps:
		f := k.function(to)
		hit.Lands = fmt.Sprintf("%s%+#x", f.Name, int64(to-f.Value))
	}
	return hit, true
}

// Jumps of return sites, and the byte of them that sealing may take for a hash: those
// of Linux 6.19, and what is none.
func TestHashMeets(t *testing.T) {
	const site = 0xffffffff81001018
	for _, c := range []struct {
		code string
		at   uint64 // bytes behind the site
		want bool
	}{
		{"\x2e\xe9\x11\xb9\x13\x00", 2, true}, // d_alloc
		{"\x2e\xe9\x21\xb8\x2d\x00", 2, true}, // atomic_notifier_chain_register
		{"\xe9\xe1\xb9\x28\x00", 2, true},
		{"\x2e\xe9\x11\xb9\x13\x00", 3, false},
		{"\x2e\xe9\x11\xb7\x13\x00", 2, false},
		{"\x2e\xe9\x81\xc0\x13\x00", 2, false},
		{"\xcc\xcc\x11\xb9\x13\x00", 2, false},
	} {
		k := kernelText{spans: []span{{site, append([]byte(c.code), 0xcc, 0xcc)}}}
		if got := k.meets(site, site+c.at); got != c.want || k.err != nil {
			t.Errorf("% x, byte %d: %v, want %v, error %v", c.code, c.at, got, c.want, k.err)
		}
	}
}

// One function after the other, by how the first ends and where.
func TestSealHit(t *testing.T) {
	const text, thunk, its = 0x1000, 0x152000, 0x152020
	for _, c := range []struct {
		name string
		end  string // the last bytes of the function before
		size uint64 // its bytes
		want sealHit
		miss bool
	}{
		{name: "return, lower half", end: "\x2e\xe9\x00\x00\x00\x00", size: 0x1f,
			want: sealHit{Address: 0x1019, Return: true, Lower: true, Harmful: true, Lands: "sealed+0xff5"}},
		{name: "return without a prefix", end: "\xe9\x00\x00\x00\x00", size: 0x20,
			want: sealHit{Address: 0x101b, Return: true, Lower: true, Harmful: true, Lands: "sealed-0xb"}},
		{name: "return, upper half", end: "\x2e\xe9\x00\x00\x00\x00", size: 0x3f,
			want: sealHit{Address: 0x1039, Return: true}},
		{name: "return, int3 behind it", end: "\x2e\xe9\x00\x00\x00\x00", size: 0x1e,
			want: sealHit{Address: 0x1018, Return: true, Lower: true}},
		{name: "return, padding behind it", end: "\x2e\xe9\x00\x00\x00\x00", size: 0x1b, miss: true},
		{name: "jump to the sealed function", end: "\xe9\x0b\x00\x00\x00", size: 0x30,
			want: sealHit{Address: 0x102b}},
		{name: "jump elsewhere", end: "\xe9\xdb\xff\xff\xff", size: 0x20,
			want: sealHit{Address: 0x101b, Lower: true, Harmful: true, Lands: "sealed-0xb"}},
		{name: "ud2", end: "\x0f\x0b", size: 0x20,
			want: sealHit{Address: 0x101c, Lower: true, Harmful: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			code := bytes.Repeat([]byte{0x90}, 0x80)
			copy(code[c.size-uint64(len(c.end)):], c.end)
			start := (c.size + 15) &^ 15
			for i := c.size; i < start; i++ {
				code[i] = 0xcc
			}
			k := kernelText{spans: []span{{text, code}}}
			sealed := text + start + 11
			for _, f := range []elf.Symbol{
				{Name: "sealed.llvm.123", Value: sealed, Size: 0x2000},
				{Name: "__cfi_before", Value: text - 16, Size: 16 + c.size},
				{Name: "before", Value: text, Size: c.size},
			} {
				k.addFunction(f)
			}
			site := text + c.size - uint64(len(c.end))
			if strings.HasPrefix(c.name, "return") {
				rel := k.at(text+c.size-4, 4)
				binary.LittleEndian.PutUint32(rel, uint32(thunk-(text+c.size)))
				k.patchReturns([]uint64{site}, thunk, its)
			}
			if !c.miss {
				c.want.Before, c.want.Sealed = "before", "sealed"
			}
			got, ok := k.seal(sealed)
			if got != c.want || ok == c.miss || k.err != nil {
				t.Errorf("got %+v, %v, error %v, want %+v", got, ok, k.err, c.want)
			}
		})
	}
}

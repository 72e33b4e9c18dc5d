package autopsy

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
	"strings"
)

// Site is a place that a table of the kernel lists for the kernel to write to.
type Site struct {
	Table   string `json:"table" yaml:"table"`
	Address uint64 `json:"address" yaml:"-"`
	Bytes   int    `json:"bytes" yaml:"bytes"`
	// For is what the entry is about, where it is not what it writes to: the function
	// that is sealed, the constant.
	For     string `json:"for,omitempty" yaml:"for,omitempty"`
	At      uint64 `json:"-" yaml:"-"` // its address; 0 for none
	target  uint64 // of a jump label: where it leads when it is on
	pokable bool   // rewritten at any time, and not only while the kernel starts
}

// String names the table, and what the entry is about: "seal-hash of f".
func (s Site) String() string {
	if s.For != "" {
		return s.Table + " of " + s.For
	}
	return s.Table
}

// The tables, by what the kernel does there. Which bytes it writes is of
// arch/x86/kernel/alternative.c, jump_label.c, static_call.c and ftrace.c.
const (
	returns      = "return"
	retpolines   = "retpoline"
	cfiCallers   = "cfi-caller"
	cfiHashes    = "cfi-hash"
	seals        = "endbr-seal"
	sealedHashes = "seal-hash"
	calls        = "call"
	alternatives = "alternative"
	smpLocks     = "smp-lock"
	staticCalls  = "static-call"
	trampolines  = "static-call trampoline"
	jumpLabels   = "jump-label"
	ftraceSites  = "ftrace"
	paravirt     = "paravirt"
	constants    = "runtime-const"
)

// takeSites reads the kernel's own tables, those that this kernel has.
func (i *Image) takeSites() {
	add := func(s Site) {
		if len(i.sites) < maxSites && i.text.holds(s.Address) && s.Bytes > 0 && i.text.holds(s.Address+uint64(s.Bytes)-1) {
			i.sites = append(i.sites, s)
			i.longest = max(i.longest, s.Bytes)
		}
	}
	for _, a := range i.relative(i.table(".return_sites", "__return_sites")) {
		n := 5
		if i.begins(a, 0x2e) {
			n = 6
		}
		add(Site{Table: returns, Address: a, Bytes: n})
	}
	for _, a := range i.relative(i.table(".retpoline_sites", "__retpoline_sites")) {
		n := 5
		switch {
		case i.begins(a, 0x2e, 0x2e):
			n = 7
		case i.begins(a, 0x2e), i.begins(a, 0x0f):
			n = 6
		}
		add(Site{Table: retpolines, Address: a, Bytes: n})
		const before = 14 // the hash that the caller checks: mov $HASH,%r10d
		if i.begins(a-before, 0x41, 0xba) {
			add(Site{Table: cfiCallers, Address: a - before, Bytes: before})
		}
	}
	for _, a := range i.relative(i.table(".cfi_sites", "__cfi_sites")) {
		add(Site{Table: cfiHashes, Address: a, Bytes: 16})
	}
	for _, a := range i.relative(i.table(".ibt_endbr_seal", "__ibt_endbr_seal")) {
		name := i.Where(a)
		add(Site{Table: seals, Address: a, Bytes: 4, For: name, At: a})
		add(Site{Table: sealedHashes, Address: a - 15, Bytes: 4, For: name, At: a})
	}
	for _, a := range i.relative(i.table(".call_sites", "__call_sites")) {
		add(Site{Table: calls, Address: a, Bytes: 5})
	}
	for _, a := range i.relative(i.table(".smp_locks", "__smp_locks")) {
		add(Site{Table: smpLocks, Address: a, Bytes: 1})
	}
	i.takeAlternatives(add)
	data, at := i.between("__start_static_call_sites", "__stop_static_call_sites"), i.named["__start_static_call_sites"]
	for n := 0; n+8 <= len(data); n += 8 {
		a := at + uint64(n) + s32(data[n:])
		bytes := 5
		if i.begins(a, 0x0f) || i.begins(a, 0x2e) {
			bytes = 6
		}
		add(Site{Table: staticCalls, Address: a, Bytes: bytes, pokable: true})
	}
	data, at = i.between("__start___jump_table", "__stop___jump_table"), i.named["__start___jump_table"]
	for n := 0; n+16 <= len(data); n += 16 {
		a, to := at+uint64(n)+s32(data[n:]), at+uint64(n)+4+s32(data[n+4:])
		bytes := 5
		if i.begins(a, 0xeb) || i.begins(a, 0x66, 0x90) {
			bytes = 2
		}
		add(Site{Table: jumpLabels, Address: a, Bytes: bytes, target: to, pokable: true})
		i.enters(a, to)
	}
	data = i.between("__start_mcount_loc", "__stop_mcount_loc")
	for n := 0; n+8 <= len(data); n += 8 {
		add(Site{Table: ftraceSites, Address: binary.LittleEndian.Uint64(data[n:]), Bytes: 5, pokable: true})
	}
	data = i.between("__parainstructions", "__parainstructions_end") // struct paravirt_patch_site
	for n := 0; n+16 <= len(data); n += 16 {
		add(Site{Table: paravirt, Address: binary.LittleEndian.Uint64(data[n:]), Bytes: int(data[n+9])})
	}
	room := maxTable // of all runtime constants
	for name, address := range i.named {
		switch {
		case strings.HasPrefix(name, "__SCT__"):
			add(Site{Table: trampolines, Address: address, Bytes: 5, pokable: true})
		case strings.HasPrefix(name, "__start_runtime_"):
			bytes := 1 // a shift
			if strings.HasPrefix(name, "__start_runtime_ptr_") {
				bytes = 8
			}
			data := i.between(name, "__stop"+strings.TrimPrefix(name, "__start"))
			data = data[:min(len(data), room)]
			room -= len(data)
			for _, a := range i.relative(data, address) {
				add(Site{Table: constants, Address: a, Bytes: bytes, For: name[len("__start_runtime_"):]})
			}
		}
	}
	slices.SortFunc(i.sites, func(a, b Site) int {
		return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.Table, b.Table), cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.target, b.target))
	})
	i.sites = slices.CompactFunc(i.sites, func(a, b Site) bool { return a.Address == b.Address && a.Table == b.Table })
	for n, data := 0, i.sectionNamed("__ex_table"); n+12 <= len(data.data); n += 12 {
		at := data.address + uint64(n)
		i.enters(at+s32(data.data[n:]), at+4+s32(data.data[n+4:])) // where a fault goes on
	}
}

// takeAlternatives reads struct alt_instr, which has grown: 12 bytes up to Linux 6.2,
// 14 from then on.
func (i *Image) takeAlternatives(add func(Site)) {
	data, at := i.table(".altinstructions", "__alt_instructions")
	for _, size := range []int{14, 12} {
		if len(data)%size != 0 {
			continue
		}
		var all []Site
		for n := 0; n < len(data); n += size {
			a := at + uint64(n) + s32(data[n:])
			old, new := int(data[n+size-2]), int(data[n+size-1])
			if code := i.at(a, old); len(code) < old || new > old {
				all = nil
				break
			}
			all = append(all, Site{Table: alternatives, Address: a, Bytes: old})
		}
		for _, s := range all {
			add(s)
		}
		if all != nil {
			return
		}
	}
}

// enters notes that a function is entered at an address from elsewhere in it.
func (i *Image) enters(from, to uint64) {
	if f := i.function(to); f != nil && i.text.holds(from) {
		i.roots[f.Address] = append(i.roots[f.Address], to)
	}
}

func (i *Image) sectionNamed(name string) section {
	if n := slices.IndexFunc(i.allocated, func(s section) bool { return s.name == name }); n >= 0 && len(i.allocated[n].data) <= maxTable {
		return i.allocated[n]
	}
	return section{}
}

// table is what the linker script puts between two symbols, or else into a section of
// its own.
func (i *Image) table(section, symbol string) (data []byte, at uint64) {
	if data := i.between(symbol, symbol+"_end"); data != nil {
		return data, i.named[symbol]
	}
	s := i.sectionNamed(section)
	return s.data, s.address
}

func (i *Image) between(from, to string) []byte {
	a, ok := i.named[from]
	b, ok2 := i.named[to]
	if !ok || !ok2 || b <= a || b-a > maxTable {
		return nil
	}
	if data := i.at(a, int(b-a)); len(data) == int(b-a) {
		return data
	}
	return nil
}

// relative are places that are each stored relative to itself.
func (i *Image) relative(data []byte, at uint64) (places []uint64) {
	for n := 0; n+4 <= len(data); n += 4 {
		places = append(places, at+uint64(n)+s32(data[n:]))
	}
	return places
}

func (i *Image) begins(address uint64, code ...byte) bool {
	return bytes.Equal(i.at(address, len(code)), code)
}

// listed are the sites that have a byte in [from, to).
func (i *Image) listed(from, to uint64) (sites []Site) {
	first := from - min(from, uint64(i.longest))
	n, _ := slices.BinarySearchFunc(i.sites, first, func(s Site, a uint64) int { return cmp.Compare(s.Address, a) })
	for ; n < len(i.sites) && i.sites[n].Address < to; n++ {
		if s := i.sites[n]; s.Address+uint64(s.Bytes) > from {
			sites = append(sites, s)
		}
	}
	return sites
}

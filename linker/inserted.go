package linker

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"unlucky/layout"
	"unlucky/linker/kbuild"
)

// lld inserts code of its own into arm64's text, as many pieces as the addresses of a
// layout ask for: a patch for each load or store that Cortex-A53's erratum 843419 could
// spoil (lld/ELF/AArch64ErrataFix.cpp), and a veneer for each branch to what is out of
// its range (Thunks.cpp). Each has a symbol of its own: so the symbols of an image are
// held against the baseline's without these. The kernel's kallsyms is without them,
// too: its scripts leave veneers out, and linker/kbuild has them leave out patches.

// mappingSymbol begins the name of a symbol that says where code or data begins.
const mappingSymbol = "$"

// veneerSymbol matches the names of veneers, as the kernel's scripts/mksysmap does.
var veneerSymbol = regexp.MustCompile(`\A__[[:alnum:]]*Thunk_`)

// insertedSections are the names of input sections in a link map that lld has made for it.
var insertedSections = []string{".text.patch", ".text.thunk"}

// withoutInserted is the table without mapping symbols, what kbuild hides, and what the
// linker has inserted, of which it notes the places; names are laid out anew, so that equal
// symbols make equal tables.
func (t symbolTable) withoutInserted() (rest symbolTable) {
	var names strings.Builder
	names.Grow(len(t.names))
	names.WriteByte(0)
	rest.raw = make([]byte, 0, len(t.raw))
	var veneers []layout.Inserted
	for i := range t.len() {
		name, at := t.name(i), layout.Inserted{Address: t.address(i), Size: t.size(i)}
		switch {
		case strings.HasPrefix(name, mappingSymbol), strings.HasSuffix(name, kbuild.HypTextEnd):
			continue
		case strings.HasPrefix(name, kbuild.PatchSymbol):
			rest.inserted = append(rest.inserted, at)
			continue
		case strings.HasPrefix(name, "__") && veneerSymbol.MatchString(name):
			veneers = append(veneers, at)
			continue
		}
		rest.raw = append(rest.raw, t.raw[i*symbolSize:(i+1)*symbolSize]...)
		rest.places = append(rest.places, int32(i))
		begin := 0
		if name != "" {
			begin = names.Len()
			names.WriteString(name)
			names.WriteByte(0)
		}
		binary.LittleEndian.PutUint32(rest.raw[len(rest.raw)-symbolSize:], uint32(begin))
	}
	rest.names = names.String()
	rest.inserted = append(rest.inserted, rest.rounded(veneers)...)
	slices.SortFunc(rest.inserted, byAddress)
	return rest
}

func byAddress(a, b layout.Inserted) int { return cmp.Compare(a.Address, b.Address) }

// rounded are veneers with the bytes that lld puts behind those that stand together.
// Where it mends the erratum in more text than a branch reaches across, it makes pages
// of them, so that they spoil nothing behind themselves (lld/ELF/Relocations.cpp,
// addThunkSection). Then no symbol is in the rest of such a page.
func (t symbolTable) rounded(veneers []layout.Inserted) []layout.Inserted {
	if veneers == nil {
		return nil
	}
	slices.SortFunc(veneers, byAddress)
	symbols := make([]uint64, t.len())
	for i := range symbols {
		symbols[i] = t.address(i)
	}
	slices.Sort(symbols)
	begin := veneers[0].Address // of those that stand together
	for i := range veneers {
		end := veneers[i].Address + veneers[i].Size
		if i+1 < len(veneers) && veneers[i+1].Address-end < veneerAlign {
			continue
		}
		page := begin + layout.AlignUp(end-begin, veneerPage)
		if next, _ := slices.BinarySearch(symbols, end); next == len(symbols) || symbols[next] >= page {
			veneers[i].Size = page - veneers[i].Address
		}
		if i+1 < len(veneers) {
			begin = veneers[i+1].Address
		}
	}
	return veneers
}

// In bytes: the alignment of veneers at most, and of a page of them.
const veneerAlign, veneerPage = 8, 4096

// errMended is a layout in which lld may have to.
var errMended = errors.New("lld looks for erratum 843419 in it")

// findSpoiled finds the instructions that the erratum could spoil, by where they stand in
// moving sections. It refuses one that stays and is spoiled: each image would be mended.
func (t *template) findSpoiled(objects []*linkedObject) error {
	for _, o := range objects {
		for i, s := range o.Sections {
			if o.at[i] < 0 || s.Flags&elf.SHF_EXECINSTR == 0 || s.Type == elf.SHT_NOBITS {
				continue
			}
			code, err := sectionBytes(s)
			if err != nil {
				return err
			}
			e, mine := &t.entries[o.at[i]], t.mine[o.at[i]]
			for at := 0; at+12 <= len(code); at += 4 {
				switch {
				case !couldSpoil(code[at:]):
				case mine >= 0:
					t.moving[mine].spoiled = append(t.moving[mine].spoiled, uint32(at))
				case spoils(e.address + uint64(at)):
					return fmt.Errorf("lld mends erratum 843419 in %s, which stays", s.Name)
				}
			}
		}
	}
	return nil
}

// couldSpoil tells whether an adrp, a load or store, and another one that takes the page
// follow each other, the last perhaps behind one more: wherever lld's own test says so
// (is843419ErratumSequence), and in a few places more.
func couldSpoil(code []byte) bool {
	word := func(n int) uint32 { return binary.LittleEndian.Uint32(code[4*n:]) }
	page := word(0) & register
	takes := func(w uint32) bool { return w&0x3b000000 == 0x39000000 && w>>5&register == page }
	return word(0)&adrMask == adrp && between(word(1), page) && (takes(word(2)) || len(code) >= 16 && takes(word(3)))
}

// between tells whether an instruction is a load or store behind which the erratum is met:
// no pair is loaded, and no register is that has the page.
func between(w, page uint32) bool {
	size, vector, opc := w>>30, w>>26&1, w>>22&3
	loads := opc != 0 && !(size == 0 && vector == 1 && opc == 2) && !(size == 3 && vector == 0 && opc == 2)
	switch {
	case w&0x0a000000 != 0x08000000, w&0x3a400000 == 0x28400000:
		return false
	case w&0x3a000000 == 0x38000000: // of one register
		return !loads || vector == 1 || w&register != page
	}
	return true
}

// spoils tells whether the erratum is met where an adrp stands.
func spoils(address uint64) bool { return address%veneerPage >= veneerPage-8 }

// mended tells whether lld may have to mend a placement.
func (p *placement) mended() bool {
	for n := range p.t.moving {
		m := &p.t.moving[n]
		for _, at := range m.spoiled {
			if spoils(m.address + p.moved[1+n] + uint64(at)) {
				return true
			}
		}
	}
	return false
}

package linker

import (
	"cmp"
	"encoding/binary"
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

package linker

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
)

// kallsyms is the table of symbols that a kernel image holds for its own
// traces, of which scripts/kallsyms.c makes several arrays. It is the baseline's,
// from which that of every layout follows: names and types stay, addresses do
// not, and the arrays are in the order of addresses.
type kallsyms struct {
	table   symbolTable
	edges   []int          // symbols at which scripts/kallsyms.c stops taking symbols in
	parts   map[string]int // the arrays' own symbols, without kallsyms_
	base    uint64         // kallsyms_relative_base, the lowest address that is not absolute; 0 for the form ownPlace
	form    form           // of the offsets
	entries []ksym         // in the baseline's order
	byName  []int          // entries, sorted by name
}

// form is what the entries of kallsyms_offsets, of 32 bits each, say.
type form int

const (
	up       form = iota // they count up from the base (6.15 to 7.0, or without per-CPU symbols)
	down                 // per-CPU symbols: their address; others count down: base - 1 - address (to 6.14)
	ownPlace             // each counts from its own place in the table (7.1 on, --pc-relative)
)

// ksym is one entry of the table.
type ksym struct {
	symbol   int    // index into the image's symbol table
	name     string // in the table
	packed   []byte // as kallsyms_names has it, with its length
	absolute bool   // a per-CPU symbol: its offset is its address
	rank     int    // among symbols at one address
}

// readKallsyms reads the table of the baseline's image, and finds the symbol
// that each of its entries is of. It returns nil for an image without one.
func readKallsyms(f *elf.File) (*kallsyms, error) {
	table, err := readSymbolTable(f)
	if err != nil {
		return nil, err
	}
	k := &kallsyms{table: table, parts: map[string]int{}}
	at := places{}
	for i := range table.len() {
		name := table.name(i)
		switch name {
		case "_stext", "_etext", "_sinittext", "_einittext":
			if k.edges = append(k.edges, i); len(k.edges) > maxEdges {
				return nil, fmt.Errorf("it has too many symbols %s", name)
			}
		}
		if rest, ok := strings.CutPrefix(name, "kallsyms_"); ok {
			k.parts[rest] = i
		}
		at.add(table, name, i)
		// Up to 6.10 the table leaves out what ThinLTO appends.
		if short, _, ok := strings.Cut(name, llvmSuffix); ok {
			at.add(table, short, i)
		}
	}
	if _, ok := k.parts["names"]; !ok {
		return nil, nil
	}
	has := map[string][]byte{}
	for _, part := range []string{"num_syms", "offsets", "relative_base", "names", "markers", "token_table", "token_index", "seqs_of_names"} {
		i, ok := k.parts[part]
		switch {
		case ok:
			if has[part], err = bytesAt(f, table, i); err != nil {
				return nil, err
			}
		case part == "relative_base": // to 7.0
			k.form = ownPlace
		case part != "seqs_of_names": // from 6.2 on
			return nil, fmt.Errorf("its kallsyms has no kallsyms_%s", part)
		}
	}
	if len(has["num_syms"]) < 4 || len(has["token_index"]) < 512 || k.form != ownPlace && len(has["relative_base"]) < 8 {
		return nil, errKallsymsShort
	}
	n := int(binary.LittleEndian.Uint32(has["num_syms"]))
	if len(has["offsets"])/4 < n {
		return nil, errKallsymsShort
	}
	forms := []form{ownPlace}
	if k.form != ownPlace {
		k.base, forms = binary.LittleEndian.Uint64(has["relative_base"]), []form{down, up}
		if k.base == 0 { // arm64's without RELR has it in a relocation
			if k.base, err = addendAt(f, table.address(k.parts["relative_base"])); err != nil {
				return nil, err
			}
		}
	}
	list, err := decodeNames(has["names"], has["token_table"], has["token_index"], n)
	if err != nil {
		return nil, err
	}
	// Names are sorted whole (6.11 on), without what ThinLTO appends, or to
	// their first dot.
	for _, k.form = range forms {
		if !k.find(list, has["offsets"], at) {
			continue
		}
		for _, suffix := range []string{"", llvmSuffix, "."} { // each leaves less
			k.sortNames(suffix)
			if k.gives(has) {
				return k, nil
			}
		}
	}
	return nil, errors.New("its kallsyms is of a form that is not known")
}

// addendAt is the addend of the dynamic relocation of a place; 0 where there is none.
func addendAt(f *elf.File, address uint64) (uint64, error) {
	s := f.Section(".rela.dyn")
	if s == nil {
		return 0, nil
	}
	data, err := sectionBytes(s)
	for ; len(data) >= relaSize; data = data[relaSize:] {
		if binary.LittleEndian.Uint64(data) == address {
			return binary.LittleEndian.Uint64(data[16:]), nil
		}
	}
	return 0, err
}

const llvmSuffix = ".llvm."

var errKallsymsShort = errors.New("its kallsyms is cut short")

// find finds the symbols of the entries, by name and address.
func (k *kallsyms) find(list []ksym, offsets []byte, at places) bool {
	k.entries = k.entries[:0]
	for i, e := range list {
		offset := binary.LittleEndian.Uint32(offsets[4*i:])
		address := k.base + uint64(offset)
		switch k.form {
		case ownPlace:
			address = k.offsetPlace(k.table, i) + uint64(int64(int32(offset)))
		case down:
			if e.absolute = int32(offset) >= 0; e.absolute {
				address = uint64(offset)
			} else {
				address = k.base - 1 - uint64(int64(int32(offset)))
			}
		}
		var ok bool
		if e.symbol, ok = at[place{e.name, address}]; !ok || e.symbol < 0 {
			return false
		}
		k.entries = append(k.entries, e)
	}
	return true
}

// offsetPlace is where an image has the offset of its n-th entry.
func (k *kallsyms) offsetPlace(t symbolTable, n int) uint64 {
	return t.address(k.parts["offsets"]) + 4*uint64(n)
}

// sortNames sorts the entries as kallsyms_seqs_of_names has them, by names that
// end before suffix unless that is empty. Those of one name are in the order of
// the table.
func (k *kallsyms) sortNames(suffix string) {
	k.byName = k.byName[:0]
	for i := range k.entries {
		e := &k.entries[i]
		if suffix != "" {
			e.name, _, _ = strings.Cut(e.name, suffix)
		}
		k.byName = append(k.byName, i)
	}
	slices.SortStableFunc(k.byName, func(a, b int) int { return strings.Compare(k.entries[a].name, k.entries[b].name) })
}

// gives tells whether the table as it is made here is the one that an image has.
func (k *kallsyms) gives(has map[string][]byte) bool {
	made, err := k.move(k.table)
	for part, data := range made {
		if !bytes.HasPrefix(has[part], data) {
			return false
		}
	}
	return err == nil
}

// maxEdges is how many symbols of the names of edges are taken: a kernel has one
// of each.
const maxEdges = 16

// places are the symbols by name and address; -1 where there are several that
// need not move together.
type places map[place]int

type place struct {
	name    string
	address uint64
}

func (p places) add(t symbolTable, name string, symbol int) {
	at := place{name, t.address(symbol)}
	if found, ok := p[at]; ok && (found < 0 || t.section(found) != t.section(symbol)) {
		symbol = -1
	}
	p[at] = symbol
}

// decodeNames expands kallsyms_names: for each symbol a length, in one or two
// bytes, and as many indices of tokens; the first character is nm's type.
func decodeNames(names, tokens, index []byte, n int) ([]ksym, error) {
	var list []ksym
	for range n {
		if len(names) < 2 {
			return nil, errKallsymsShort
		}
		length, head := int(names[0]), 1
		if length&0x80 != 0 {
			length, head = length&0x7f|int(names[1])<<7, 2
		}
		if len(names)-head < length {
			return nil, errKallsymsShort
		}
		var name []byte
		for _, token := range names[head : head+length] {
			at := int(binary.LittleEndian.Uint16(index[2*int(token):]))
			if at >= len(tokens) {
				return nil, errKallsymsShort
			}
			text, _, _ := bytes.Cut(tokens[at:min(at+maxName, len(tokens))], []byte{0})
			if name = append(name, text...); len(name) > maxName {
				return nil, errors.New("its kallsyms has a name without an end")
			}
		}
		if len(name) == 0 {
			return nil, errKallsymsShort
		}
		list = append(list, ksym{name: string(name[1:]), packed: bytes.Clone(names[:head+length]), rank: rank(name[0], string(name[1:]))})
		names = names[head+length:]
	}
	return list, nil
}

// rank is what a symbol is sorted by among those at one address: weak ones last,
// before them those that a linker script seems to define, each by the number of
// underscores that they begin with (scripts/kallsyms.c, compare_symbols).
func rank(kind byte, name string) int {
	r := len(name) - len(strings.TrimLeft(name, "_"))
	if len(name) >= 8 && strings.HasPrefix(name, "__") && scriptSymbol.MatchString(name) {
		r += maxName
	}
	if kind == 'w' || kind == 'W' {
		r += 2 * maxName
	}
	return r
}

var scriptSymbol = regexp.MustCompile(`(?s)\A__(start_|stop_|end_)|(_start|_end)\z`)

// bytesAt is what a symbol is the beginning of, to the end of its section.
func bytesAt(f *elf.File, t symbolTable, symbol int) ([]byte, error) {
	s, at, err := sectionOf(f, t, symbol)
	if err != nil {
		return nil, err
	}
	data, err := sectionBytes(s)
	if err != nil {
		return nil, err
	}
	return data[at:], nil
}

// sectionOf is the section with contents that a symbol is in, and where in it.
func sectionOf(f *elf.File, t symbolTable, symbol int) (s *elf.Section, at uint64, err error) {
	i := t.section(symbol)
	if i == 0 || i >= len(f.Sections) || f.Sections[i].Type != elf.SHT_PROGBITS {
		return nil, 0, fmt.Errorf("%s is in no section with contents", t.name(symbol))
	}
	s = f.Sections[i]
	if at = t.address(symbol) - s.Addr; t.address(symbol) < s.Addr || at > s.FileSize {
		return nil, 0, fmt.Errorf("%s is outside its section", t.name(symbol))
	}
	return s, at, nil
}

var errFirst = errors.New("the first symbol of its kallsyms has moved")

var errSymbols = errors.New("the symbols are others than the baseline's")

// errEdge means that another layout has other symbols in the table.
var errEdge = errors.New("a symbol stands on another side of the end of the text than in the baseline")

// patch writes into an image the table that its own symbols make. The error
// tells that the layout is not one for one pass.
func (k *kallsyms) patch(path string) error {
	f, err := openELF(path)
	if err != nil {
		return err
	}
	defer f.Close()
	now, err := readSymbolTable(f.File)
	if err != nil {
		return err
	}
	made, err := k.move(now)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for part, data := range made {
		s, at, perr := sectionOf(f.File, now, k.parts[part])
		if perr == nil && s.FileSize-at < uint64(len(data)) {
			perr = errKallsymsShort
		}
		if perr == nil {
			_, perr = file.WriteAt(data, int64(s.Offset+at))
		}
		if perr == nil && part == "offsets" && k.form == ownPlace {
			perr = k.relocate(f.File, file, now, data)
		}
		err = errors.Join(err, perr)
	}
	return errors.Join(err, file.Close())
}

// relocate brings the relocations of the offsets, which an image has that was
// linked with --emit-relocs (RELOCATABLE on x86-64), to what they are in this
// layout: each is the distance to a symbol, and its addend says how far behind that
// the entry's is.
func (k *kallsyms) relocate(f *elf.File, image io.WriterAt, now symbolTable, offsets []byte) error {
	table, _, err := sectionOf(f, now, k.parts["offsets"])
	if err != nil {
		return err
	}
	first := k.offsetPlace(now, 0)
	for _, s := range f.Sections {
		if s.Type != elf.SHT_RELA || int(s.Info) >= len(f.Sections) || f.Sections[s.Info] != table {
			continue
		}
		data, err := sectionBytes(s)
		if err != nil {
			return err
		}
		from, to := len(data), 0 // what has changed
		for at := 0; at+relaSize <= len(data); at += relaSize {
			r := data[at : at+relaSize]
			n := (binary.LittleEndian.Uint64(r) - first) / 4
			symbol := int(binary.LittleEndian.Uint32(r[12:]))
			if n >= uint64(len(offsets)/4) || symbol >= now.len() { // one of something else
				continue
			}
			address := k.offsetPlace(now, int(n)) + uint64(int32(binary.LittleEndian.Uint32(offsets[4*n:])))
			binary.LittleEndian.PutUint64(r[16:], address-now.address(symbol))
			from, to = min(from, at), at+relaSize
		}
		if from < to {
			if _, err := image.WriteAt(data[from:to], int64(s.Offset)+int64(from)); err != nil {
				return err
			}
		}
	}
	return nil
}

// relaSize is the size in bytes of an Elf64_Rela: place, type and symbol, addend.
const relaSize = 24

// move returns the arrays of the table, by their names without kallsyms_, for
// symbols that have moved. They have the sizes of the baseline's, as the names
// and types are the same: how these are compressed depends on how often which
// letters come, and not on the order (scripts/kallsyms.c, write_src).
func (k *kallsyms) move(now symbolTable) (map[string][]byte, error) {
	if !k.table.same(now) {
		return nil, errSymbols
	}
	for _, edge := range k.edges {
		was, is := k.table.address(edge), now.address(edge)
		for i := range now.len() {
			if cmp.Compare(k.table.address(i), was) != cmp.Compare(now.address(i), is) {
				return nil, fmt.Errorf("%w: %s, by %s", errEdge, now.name(i), now.name(edge))
			}
		}
	}
	order := k.order(now)
	for _, i := range order {
		if e := k.entries[i]; !e.absolute && k.form != ownPlace {
			if now.address(e.symbol) != k.base {
				return nil, errFirst
			}
			break
		}
	}
	little := binary.LittleEndian
	var names, markers, offsets, seqs []byte
	place := make([]int, len(order)) // of an entry
	for n, i := range order {
		place[i] = n
		if n%256 == 0 {
			markers = little.AppendUint32(markers, uint32(len(names)))
		}
		e := k.entries[i]
		names = append(names, e.packed...)
		offset := now.address(e.symbol)
		switch {
		case e.absolute:
		case k.form == ownPlace:
			offset -= k.offsetPlace(now, n)
		case k.form == down:
			offset = k.base - 1 - offset
		default:
			offset -= k.base
		}
		offsets = little.AppendUint32(offsets, uint32(offset))
	}
	made := map[string][]byte{"names": names, "markers": markers, "offsets": offsets}
	if _, ok := k.parts["seqs_of_names"]; ok {
		byName := slices.Clone(k.byName)
		for from := 0; from < len(byName); {
			to := from + 1
			for to < len(byName) && k.entries[byName[to]].name == k.entries[byName[from]].name {
				to++
			}
			slices.SortFunc(byName[from:to], func(a, b int) int { return place[a] - place[b] })
			from = to
		}
		for _, i := range byName {
			seqs = append(seqs, byte(place[i]>>16), byte(place[i]>>8), byte(place[i]))
		}
		made["seqs_of_names"] = seqs
	}
	return made, nil
}

// order is that of the table: by address, then by rank, then as llvm-nm -n
// prints them.
func (k *kallsyms) order(now symbolTable) []int {
	order := make([]int, len(k.entries))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		d, e := &k.entries[a], &k.entries[b]
		if c := cmp.Compare(now.address(d.symbol), now.address(e.symbol)); c != 0 {
			return c
		}
		return cmp.Or(cmp.Compare(d.rank, e.rank), now.compare(d.symbol, e.symbol))
	})
	return order
}

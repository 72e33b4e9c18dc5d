package linker

import (
	"bufio"
	"bytes"
	"fmt"
	"go/ast"
	"regexp"
	"strings"
)

// mapEntry is a line of a link map that takes a place: the beginning of an output
// section, an input section, or an assignment of the linker script. Its address is in
// the image; that of an assignment is the location counter's before it.
type mapEntry struct {
	address, size, align uint64
	out                  string // the output section, and of an assignment between two ""
	file, name           string // of an input section
	number               int    // of an input section: how many stand before it
	begins               bool   // an output section

	symbol string   // that is assigned, "." for the location counter; or else ""
	to     ast.Expr // what; nil for one that is not understood
	depend []string // what it looks at
	watch  bool     // its value is not the same in all layouts
	target int32    // by which its value moves
}

// readLinkMap reads lld's link map (lld/ELF/MapFile.cpp, and readLayout).
func readLinkMap(linkMap []byte) (entries []mapEntry, err error) {
	lines := bufio.NewScanner(bytes.NewReader(linkMap))
	lines.Buffer(nil, 1<<20)
	out, sections := "", 0
	for n := 1; lines.Scan(); n++ {
		head, what, ok := mapLine(lines.Text())
		if !ok || n == 1 {
			continue
		}
		e := mapEntry{address: head.Address, size: head.Size, align: max(head.Align, 1)}
		if e.align&(e.align-1) != 0 || e.address+e.size < e.address && !strings.Contains(what, "=") {
			return nil, fmt.Errorf("line %d of the link map: no section can be so: %.80q", n, lines.Text())
		}
		text := strings.TrimLeft(what, " ")
		depth := len(what) - len(text)
		switch symbol, to, assigns := assignment(text); {
		case depth > 8, text == "": // a symbol; an ASSERT
			continue
		case assigns:
			e.symbol = symbol
			if depth > 0 {
				e.out = out
			}
			if e.to, err = parseExpression(to); err != nil {
				e.to = nil
				e.depend = words(to)
			} else {
				e.depend = namesIn(e.to)
			}
		case depth == 0:
			out = text
			e.out, e.begins = text, true
		default:
			e.out, e.number = out, sections
			sections++
			var ok bool
			if e.file, e.name, ok = strings.Cut(strings.TrimSuffix(text, ")"), ":("); !ok { // BYTE, LONG
				sections--
				e.symbol, e.depend = text, words(text)
			}
		}
		entries = append(entries, e)
	}
	return entries, lines.Err()
}

// input tells an input section from other lines.
func (e *mapEntry) input() bool { return !e.begins && e.symbol == "" }

// assignment takes apart `name = expression`, and the like.
func assignment(text string) (symbol, to string, ok bool) {
	if symbol, to, ok = strings.Cut(text, " += "); ok {
		return symbol, symbol + " + (" + to + ")", true
	}
	if symbol, to, ok = strings.Cut(text, " = "); !ok {
		return "", "", false
	}
	for _, call := range []string{"PROVIDE_HIDDEN", "PROVIDE", "HIDDEN"} {
		if rest, ok := strings.CutPrefix(symbol, call); ok {
			if rest, ok = strings.CutPrefix(strings.TrimLeft(rest, " "), "("); ok {
				return strings.TrimSpace(rest), strings.TrimSuffix(strings.TrimSpace(to), ")"), true
			}
		}
	}
	return symbol, to, true
}

// readAsserts reads the assertions of a linker script. In lld's map are only those that are
// assigned to something.
func readAsserts(script string) (entries []mapEntry) {
	script = scriptComment.ReplaceAllString(script, " ")
	for _, at := range assertCall.FindAllStringIndex(script, -1) {
		depth, quoted, end := 0, false, len(script)
		for i, c := range script[at[1]-1:] {
			switch {
			case c == '"':
				quoted = !quoted
			case quoted:
			case c == '(':
				depth++
			case c == ')':
				depth--
			}
			if depth == 0 {
				end = at[1] + i
				break
			}
		}
		text := strings.Join(strings.Fields(script[at[0]:end]), " ")
		e := mapEntry{symbol: ".", depend: words(text)}
		if tree, err := parseExpression(text); err == nil {
			e.to, e.depend = tree, namesIn(tree)
		}
		entries = append(entries, e)
	}
	return entries
}

var (
	scriptComment = regexp.MustCompile(`(?s)/\*.*?\*/`)
	assertCall    = regexp.MustCompile(`\bASSERT\s*\(`)
)

// words are the names in a text that is not understood.
func words(text string) []string { return anyName.FindAllString(text, -1) }

var anyName = regexp.MustCompile(`[A-Za-z_.$][\w.$]*`)

package oops

import (
	"bytes"
	"strings"
)

// hints finds which of many short texts stand in a line, in one pass over it: a
// bit for every pair of bytes tells whether one of them may be here. The pair that
// stands for a text is the one of its pairs that lines have least often.
type hints struct {
	seen    [1 << 16 / 8]uint8 // a bit for each pair: small enough to stay in a CPU's nearest cache
	bucket  [1 << 16]uint8     // of those pairs
	buckets [][]hint
}

type hint struct {
	text   string
	offset int // of the pair in it
	id     int
}

// rare are the letters of English text, the most frequent first; all other bytes
// are rarer.
const rare = " etaoinsrhldcumfpgwybvkxjqz"

func newHints(texts []string) *hints {
	h := &hints{buckets: make([][]hint, 1)}
	rank := func(b byte) int {
		if i := strings.IndexByte(rare, b); i >= 0 {
			return i
		}
		return len(rare)
	}
	for id, text := range texts {
		best := 0
		for i := range len(text) - 1 {
			if rank(text[i])+rank(text[i+1]) > rank(text[best])+rank(text[best+1]) {
				best = i
			}
		}
		pair := uint16(text[best])<<8 | uint16(text[best+1])
		h.seen[pair>>3] |= 1 << (pair & 7)
		if h.bucket[pair] == 0 {
			h.bucket[pair] = uint8(len(h.buckets))
			h.buckets = append(h.buckets, nil)
		}
		b := h.bucket[pair]
		h.buckets[b] = append(h.buckets[b], hint{text, best, id})
	}
	return h
}

// in returns the lowest id, from least on, of a text that stands in line, or -1.
func (h *hints) in(line []byte, least int) int {
	found := -1
	if len(line) < 2 {
		return found
	}
	pair := uint16(line[0])
	for i, b := range line[1:] {
		pair = pair<<8 | uint16(b)
		if h.seen[pair>>3]&(1<<(pair&7)) == 0 {
			continue
		}
		for _, t := range h.buckets[h.bucket[pair]] {
			if t.id >= least && (found < 0 || t.id < found) && i >= t.offset && bytes.HasPrefix(line[i-t.offset:], []byte(t.text)) {
				found = t.id
			}
		}
	}
	return found
}

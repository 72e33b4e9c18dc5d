package oops

import (
	"bytes"
	"testing"
)

// FuzzHints: the index finds what a search for each text finds.
func FuzzHints(f *testing.F) {
	texts := hintsOf(rules)
	for _, text := range texts {
		f.Add([]byte("x"+text), uint8(0))
	}
	f.Add([]byte("BUG: BUG: KASAN: [# Oops: WARNING: "), uint8(1))
	f.Fuzz(func(t *testing.T, line []byte, least uint8) {
		want := -1
		for i := int(least); i < len(texts) && want < 0; i++ {
			if bytes.Contains(line, []byte(texts[i])) {
				want = i
			}
		}
		if got := ruleHints.in(line, int(least)); got != want {
			t.Errorf("%q from %d: %d, want %d", line, least, got, want)
		}
	})
}

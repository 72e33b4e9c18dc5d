package cli

import (
	"strings"
	"testing"
)

// A console comes byte by byte.
func TestPrinter(t *testing.T) {
	var out strings.Builder
	for _, b := range []byte("x\x1b]0;t\a\r\n\xc2\x9bm\n") { //
		printer{&out}.Write([]byte{b})
	}
	if want := "x.]0;t.\n..m\n"; out.String() != want {
		t.Errorf("a console printed as %q, want %q", out.String(), want)
	}
}

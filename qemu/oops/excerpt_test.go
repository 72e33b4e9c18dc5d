package oops

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// An excerpt is the whole of what its console was named by, and nothing that
// stands before or behind it.
func TestExcerpt(t *testing.T) {
	longest := 0
	for path, log := range consoles(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			want, crashed := Classify(log, true)
			got := Excerpt(log, true)
			if !crashed {
				return // FuzzClassify's laws
			}
			// Of one banner nobody tells that it is the second.
			if again, ok := Classify([]byte(strings.Join(got, "\n")), true); want.Kind != "reboot" && (!ok || again.Title != want.Title) {
				t.Errorf("%q is %q by its excerpt\n%s", want.Title, again.Title, strings.Join(got, "\n"))
			}
			longest = max(longest, len(got))
			if all := Lines(log); len(got) > maxReport+2 || !contains(all, got) {
				t.Errorf("%d lines, not of the console's %d in their order", len(got), len(all))
			}
		})
	}
	if longest < 40 {
		t.Errorf("the longest excerpt has %d lines: no oops is that short", longest)
	}
}

// contains tells whether some lines stand in others, in their order.
func contains(all, some []string) bool {
	for _, line := range some {
		i := slices.Index(all, line)
		if i < 0 {
			return false
		}
		all = all[i+1:]
	}
	return true
}

func TestExcerptText(t *testing.T) {
	const console = "[    0.1] no stamp\r\n[    0.100000] Linux version 6.12\n\n" +
		"[    0.200000] WARNING: CPU: 0 PID: 1 at a.c:1 harmless+0x1/0x2\n[    0.200001] ---[ end trace 0 ]---\n" +
		"\x1b[31m[    0.300000][    T1] Oops: int3: 0000 [#1]\x1b[0m\n" +
		"[    0.300001][    T1] RIP: 0010:f+0x1/0x2\n[    0.300002][    T1] Call Trace:\n" +
		"[    0.300003][    T1]  <TASK>\n[    0.300004][    T1]  ? g+0x1/0x2\n" +
		"[    0.300005][    T1] ---[ end trace 0000000000000000 ]---\n[    0.400000] after\x00it"
	want := []string{"Oops: int3: 0000 [#1]", "RIP: 0010:f+0x1/0x2", "Call Trace:", " <TASK>", " ? g+0x1/0x2", "---[ end trace 0000000000000000 ]---"}
	if got := Excerpt([]byte(console), false); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := Excerpt([]byte(console), true); len(got) != 2 || !strings.HasPrefix(got[0], "WARNING: ") {
		t.Errorf("with warnings: %q", got)
	}
	lines := Lines([]byte(console))
	if n := len(lines); n != 11 || lines[0] != "[    0.1] no stamp" || lines[n-1] != "after it" {
		t.Errorf("%d lines: %q", len(lines), lines)
	}
	if got := Excerpt([]byte("invalid magic\n -- System halted"), false); !slices.Equal(got, []string{"invalid magic", " -- System halted"}) {
		t.Errorf("a decompressor's: %q", got)
	}
	if got := Excerpt([]byte("all is well\n"), true); got != nil {
		t.Errorf("none: %q", got)
	}
}

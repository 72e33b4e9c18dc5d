package seeds

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"unlucky/autopsy"
	"unlucky/layout"
	"unlucky/qemu"
	"unlucky/scenarios"
)

// same compares Files by their values.
var same = cmp.Options{
	cmpopts.IgnoreUnexported(autopsy.Damage{}, autopsy.Site{}),
	cmp.AllowUnexported(ID{}),
	cmp.Comparer(func(a, b scenarios.Regexp) bool { return a.String() == b.String() }),
	cmpopts.EquateEmpty(),
}

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

// example returns a saved seed with every key in it.
func example(t testing.TB) File {
	const name = "testdata/scenario.yaml"
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	scenario, err := scenarios.Parse(data, name)
	if err != nil {
		t.Fatal(err)
	}
	return File{
		Version:  Version,
		Layout:   Seed(7),
		Strategy: "text/1",
		Verdict: Verdict{Kind: qemu.Crash, Title: "BUG: unable to handle kernel paging request in do_one_initcall", Boots: 3, Crashes: 3, Titles: map[string]int{
			"BUG: unable to handle kernel paging request in do_one_initcall": 2,
			"hang: no output after Freeing unused kernel image":              1,
		}},
		Accel: "tcg",
		Digests: Digests{
			Object: strings.Repeat("0123456789abcdef", 4),
			Plan:   layout.Plan{}.Digest(),
			Image:  strings.Repeat("fe", 32),
			Initrd: strings.Repeat("ad", 32),
		},
		Tools:    Tools{Clang: "22.1.8", LLD: "22.1.8", QEMU: "7.2.22", Unlucky: "v0.0.0-20260517030405-0123456789ab"},
		Command:  `qemu-system-x86_64 -M microvm,acpi=off -append 'console=ttyS0 panic=-1' -kernel vmlinux`,
		At:       time.Date(2026, 5, 17, 3, 4, 5, 0, time.UTC),
		Scenario: scenario,
	}
}

// examples are one File of each kind, by the name of its golden.
func examples(t testing.TB) map[string]File {
	crash := example(t)

	hang := example(t)
	hang.Layout, hang.Kind = Baseline, qemu.Hang
	hang.Title, hang.Titles = "hang: no output after 'a: b' # c", nil
	hang.Boots, hang.Crashes = 1, 1

	twin := example(t)
	twin.Layout, twin.Kind = Seed(0), qemu.Pass
	twin.Title, twin.Titles, twin.Crashes = "", nil, 0
	twin.Accel = "kvm"

	minimized := example(t)
	minimized.Plan = &layout.Plan{Paddings: []layout.Padding{
		{Section: ".text.canary_reboot", Bytes: 16},
		{Section: ".text#2", Bytes: 48},
	}}
	minimized.Minimized = exampleMinimized(minimized.Title)

	byFlag := example(t)
	var flag uint32
	byFlag.Strategy, byFlag.Plan = "lld/1", &layout.Plan{Flag: &flag}

	return map[string]File{
		"crash": crash, "hang": hang, "twin": twin, "minimized": minimized, "flag": byFlag,
	}
}

func TestMarshalGolden(t *testing.T) {
	for name, f := range examples(t) {
		t.Run(name, func(t *testing.T) {
			got, err := f.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".yaml")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(got)); d != "" {
				t.Errorf("%s (-want +got), -update rewrites it:\n%s", golden, d)
			}
			back, err := Read(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(f, back, same); d != "" {
				t.Errorf("read back (-want +got):\n%s", d)
			}
		})
	}
}

// Every built-in scenario, patches and all, is the same behind a saved seed.
func TestBuiltinScenarios(t *testing.T) {
	all := scenarios.Builtin()
	if len(all) == 0 {
		t.Fatal("no built-in scenarios")
	}
	for _, scenario := range all {
		f := example(t)
		f.Scenario = scenario
		data, err := f.Marshal()
		if err != nil {
			t.Errorf("%s: %v", scenario.Name, err)
			continue
		}
		back, err := parse(data, "7.yaml")
		if err != nil {
			t.Errorf("%s: %v", scenario.Name, err)
			continue
		}
		if d := cmp.Diff(scenario, back.Scenario, same); d != "" {
			t.Errorf("%s (-want +got):\n%s", scenario.Name, d)
		}
	}
}

// A file cut at any byte is refused, except where only the line feed at its
// end is gone.
func TestReadCutShort(t *testing.T) {
	f := example(t)
	data, err := f.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(data) - 1 {
		if _, err := parse(data[:n], "7.yaml"); err == nil {
			t.Fatalf("cut at byte %d of %d it is still read", n, len(data))
		}
	}
}

// A file that went through a mail program on another system, or was edited by
// hand, is still read.
func TestReadLenient(t *testing.T) {
	f := example(t)
	data, err := f.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"CRLF":     strings.ReplaceAll(string(data), "\n", "\r\n"),
		"comments": "# from the night of May 17\n\n" + strings.Replace(string(data), "\naccel:", "\n# no KVM here\naccel:", 1),
		"spaces":   string(data) + "\n  \n",
		"order":    strings.Replace(strings.Replace(string(data), "boots: 3\n", "", 1), "accel: tcg\n", "accel: tcg\nboots: 3\n", 1),
	} {
		if text == string(data) {
			t.Fatalf("%s: nothing was changed", name)
		}
		got, err := parse([]byte(text), "7.yaml")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if again, err := got.Marshal(); err != nil || !bytes.Equal(again, data) {
			t.Errorf("%s: marshals to something else: %v", name, err)
		}
	}
}

func TestReadErrors(t *testing.T) {
	f := example(t)
	data, err := f.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	good := string(data)
	for _, test := range []struct {
		name, old, new string // old "" replaces the whole
		want           string
	}{
		{"empty", "", "", "7.yaml: the file is empty"},
		{"garbage", "", "\x7fELF\x02\x01\x01\x00", `7.yaml: not a saved seed: it does not begin with "unlucky: 1"`},
		{"version second", "unlucky: 1\nseed: 7\n", "seed: 7\nunlucky: 1\n", `7.yaml: not a saved seed: it does not begin with "unlucky: 1"`},
		{"newer", "unlucky: 1\n", "unlucky: 2\nnovelty: yes\n", "7.yaml: written by a newer unlucky (version 2); this one reads 1"},
		{"newer, cut", "", "unlucky: 2", "7.yaml: written by a newer unlucky (version 2); this one reads 1"},
		{"version 0", "unlucky: 1\n", "unlucky: 0\n", "7.yaml: there is no version 0 of the saved seed"},
		{"cut short", "\n...\n", "\n", `7.yaml: cut short: its last line is not "..."`},
		{"two in one", "\n...\n", "\n...\n---\nunlucky: 1\n...\n", "7.yaml: something follows the end of the saved seed, the line \"...\""},
		{"unknown key", "\naccel:", "\nacel:", "7.yaml: line 13: unknown key acel"},
		{"unknown nested key", "  image:", "  imge:", "7.yaml: line 17: unknown key imge"},
		{"twice", "accel: tcg\n", "accel: tcg\naccel: tcg\n", `7.yaml: line 14: mapping key "accel" already defined at line 13`},
		{"not YAML", "accel: tcg", "accel: [tcg", "7.yaml: line 12: did not find expected ',' or ']'"}, // yaml.v3 counts so
		{"a list", "unlucky: 1\n", "unlucky: 1\n- 1\n", "7.yaml: line 2: did not find expected key"},
		{"seed", "seed: 7", "seed: -7", `7.yaml: line 4: "-7" is neither baseline nor a seed (0 to 4294967295)`},
		{"seed a list", "seed: 7", "seed: [7]", `7.yaml: line 4: "" is neither baseline nor a seed (0 to 4294967295)`},
		{"no seed", "seed: 7\n", "", "7.yaml: seed: this key is missing"},
		{"seed of nothing", "seed: 7\n", "seed:\n", "7.yaml: seed: this key is missing"},
		{"no scenario", good[strings.Index(good, "\nscenario:"):], "\n...\n", "7.yaml: scenario: this key is missing"},
		{"auto", "strategy: text/1", "strategy: auto/1", `7.yaml: line 5: strategy: "auto/1" is not a strategy with its version, like text/1`},
		{"no strategy version", "strategy: text/1", "strategy: text", `7.yaml: line 5: strategy: "text" is not a strategy with its version, like text/1`},
		{"kind", "kind: crash", "kind: infra", `7.yaml: line 6: kind: "infra" is none of crash, hang, pass`},
		{"no title", "title: 'BUG: unable to handle kernel paging request in do_one_initcall'\n", "", "7.yaml: title: a crash has a title"},
		{"escape in title", "title: 'BUG: unable", `title: "\e[2J" #`, `7.yaml: line 7: title: "\x1b[2J" is not printable ASCII`},
		{"escape in titles", "'hang: no", `"\x07": 1 #`, `7.yaml: line 11: titles: "\a" is not a title in printable ASCII`},
		{"count of a title", "initcall': 2", "initcall': 4", `7.yaml: line 11: titles: "BUG: unable to handle kernel paging request in do_one_initcall": 4 is not between 1 and the 3 boots`},
		{"boots", "boots: 3", "boots: three", "7.yaml: line 8: cannot unmarshal !!str `three` into int"},
		{"no boots", "boots: 3", "boots: 0", "7.yaml: line 8: boots: 0 is less than 1"},
		{"crashes", "crashes: 3", "crashes: 4", "7.yaml: line 9: crashes: 4 is not between 0 and the 3 boots"},
		{"accel", "accel: tcg", "accel: hvf", `7.yaml: line 13: accel: "hvf" is neither kvm nor tcg`},
		{"digest", "fefefefe", "FEfefefe", `7.yaml: line 17: digests.image: "FEfefefe` + strings.Repeat("fe", 28) + `" is not a SHA-256 in 64 lower-case hex digits`},
		{"no digest", "  image: " + strings.Repeat("fe", 32) + "\n", "", `7.yaml: digests.image: "" is not a SHA-256 in 64 lower-case hex digits`},
		{"found", "found: 2026", "found: 0001", "7.yaml: line 25: found: 0001-05-17 03:04:05 +0000 UTC is not a time of a find"},
		{"no time", "found: 2026-05-17T03:04:05Z", "found: 7", `7.yaml: line 25: found: "7" is not a time like 2006-01-02T15:04:05Z`},
		// The rest of these is scenarios' own.
		{"scenario's key", "    memory:", "    memry:", "7.yaml: line 51: guest.memry: ..."},
		{"scenario's value", "memory: 128M", "memory: 128", "7.yaml: line 51: guest.memory: ..."},
		{"scenario without its patch", "        text: |\n", "        tested: |\n", "7.yaml: line 34: ..."},
	} {
		t.Run(test.name, func(t *testing.T) {
			text := test.new
			if test.old != "" {
				if text = strings.Replace(good, test.old, test.new, 1); text == good {
					t.Fatalf("%q is not in the file", test.old)
				}
			}
			_, err := parse([]byte(text), "7.yaml")
			if err == nil {
				t.Fatalf("no error, want %q", test.want)
			}
			want, open := strings.CutSuffix(test.want, "...")
			if got := err.Error(); got != test.want && !(open && strings.HasPrefix(got, want)) {
				t.Errorf("error:\n  %s\nwant:\n  %s", got, test.want)
			}
		})
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none.yaml")); !os.IsNotExist(err) {
		t.Errorf("no file at all: %v", err)
	}
}

// A file that was made to exhaust the reader is refused, and soon.
func TestReadHostile(t *testing.T) {
	f := example(t)
	data, err := f.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	with := func(key, value string) string {
		return strings.Replace(string(data), "\n"+key+":", "\n"+key+": "+value+"\nx"+key+":", 1)
	}
	laughs := "[&a [x, x, x, x, x, x, x, x, x, x]"
	for c := 'b'; c <= 'k'; c++ {
		laughs += fmt.Sprintf(", &%c [%s*%c]", c, strings.Repeat(fmt.Sprintf("*%c, ", c-1), 9), c-1)
	}
	for _, test := range []struct{ name, text, want string }{
		{"aliases of aliases", with("titles", laughs+"]"), "7.yaml: line 10: anchors and aliases are not taken: write the value out"},
		{"aliases of aliases in the plan", strings.Replace(string(data), "\nscenario:", "\nplan: {paddings: [&a {section: "+strings.Repeat("x", 1<<20)+", bytes: 1}"+strings.Repeat(", *a, {section: x, bytes: 1}", 1<<12)+"]}\nscenario:", 1), "7.yaml: line 26: anchors and aliases are not taken: write the value out"},
		{"an alias of itself", with("titles", "&a [*a]"), "7.yaml: line 10: anchors and aliases are not taken: write the value out"},
		{"a depth of a million", with("titles", strings.Repeat("[", 1<<20)), "7.yaml: line 10: exceeded max depth"},
		{"a list of half a million", with("titles", "["+strings.Repeat("a,", 1<<19)+"a]"), "7.yaml: line "},
		{"a list of millions", with("titles", "["+strings.Repeat("a,", 1<<22)+"a]"), "7.yaml: more than 1048576 lines and commas: not a saved seed"},
		{"longer than any", string(data[:len(data)-4]) + "# " + strings.Repeat("x", maxFile) + "\n...\n", "7.yaml: longer than 16 MiB: not a saved seed"},
		{"seed beyond all", strings.Replace(string(data), "seed: 7", "seed: 4294967296", 1), `7.yaml: line 4: "4294967296" is neither`},
		{"seed that is a path", strings.Replace(string(data), "seed: 7", "seed: ../../etc/x", 1), `7.yaml: line 4: "../../etc/x" is neither`},
		{"NUL in the title", strings.Replace(string(data), "title: 'BUG: unable", `title: "\0" #`, 1), `7.yaml: line 7: title: "\x00" is not printable ASCII`},
		{"line feed in the title", strings.Replace(string(data), "title: 'BUG: unable", `title: "a\nb" #`, 1), `7.yaml: line 7: title: "a\nb" is not printable ASCII`},
		{"scenario's name leaves the folder", strings.Replace(string(data), "\n  name: ", "\n  name: ../../etc/x #", 1), `7.yaml: line 27: name: "../../etc/x" is no name`},
		{"boots beyond all", strings.Replace(string(data), "boots: 3", "boots: 99999999999999999999", 1), "7.yaml: line 8: cannot unmarshal"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.text == string(data) {
				t.Fatal("nothing was changed")
			}
			var before, after unix.Rusage
			unix.Getrusage(unix.RUSAGE_SELF, &before)
			_, err := parse([]byte(test.text), "7.yaml")
			unix.Getrusage(unix.RUSAGE_SELF, &after)
			if err == nil || !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("error %.200v\nwant  %s", err, test.want)
			}
			if err != nil && len(err.Error()) > 2000 {
				t.Errorf("the error has %d letters: %.200v", len(err.Error()), err)
			}
			if took := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()); took > 20*time.Second { // of CPU
				t.Errorf("it took %v", took)
			}
		})
	}
	long := filepath.Join(t.TempDir(), "long.yaml")
	if err := errors.Join(os.WriteFile(long, data, 0o644), os.Truncate(long, 1<<30)); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := Read(long); err == nil || err.Error() != long+": longer than 16 MiB: not a saved seed" {
		t.Errorf("a file of a gigabyte: %v", err)
	}
	if runtime.ReadMemStats(&after); after.TotalAlloc-before.TotalAlloc > 20*maxFile {
		t.Errorf("a file of a gigabyte took %d MiB", (after.TotalAlloc-before.TotalAlloc)>>20)
	}
}

// Whatever the title of a seed, it is saved below the store's folder.
func TestSavedInStore(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, "tiny")
	if err != nil {
		t.Fatal(err)
	}
	titles := []string{"../../etc/x", "/etc/x", "..", ".", "a/../../../b", "~", "-rf", strings.Repeat("x", 5000), "a\\b", "$(id)", "sweep.journal"}
	for i, title := range titles {
		f := example(t)
		f.Layout, f.Title, f.Titles = Seed(uint32(i)), title, nil
		path, err := s.Save(f, nil)
		rel, rerr := filepath.Rel(s.Dir(), path)
		if err != nil || rerr != nil || !filepath.IsLocal(rel) || strings.Count(rel, "/") != 1 {
			t.Errorf("%.50q is saved as %s, %v", title, path, err)
		}
	}
	if all := files(t, dir); len(all) != 2*len(titles) {
		t.Errorf("the store has %q", all)
	}
}

// What Read would refuse is not written in the first place.
func TestMarshalErrors(t *testing.T) {
	for name, spoil := range map[string]func(*File){
		"strategy": func(f *File) { f.Strategy = "auto" },
		"kind":     func(f *File) { f.Kind = qemu.LinkFailed },
		"title":    func(f *File) { f.Title = "a\nunlucky: 2" },
		"boots":    func(f *File) { f.Boots = 0 },
		"found":    func(f *File) { f.At = time.Time{} },
		"digests":  func(f *File) { f.Digests.Plan = "none" },
	} {
		f := example(t)
		spoil(&f)
		if _, err := f.Marshal(); err == nil || !strings.Contains(err.Error(), "saved seed: "+name) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// FuzzRead: whatever is read, marshals, and from then on reads and marshals to
// the same bytes for ever.
func FuzzRead(f *testing.F) {
	golden, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(golden) < len(examples(f)) {
		f.Fatalf("the goldens in testdata: %d, %v", len(golden), err)
	}
	for _, name := range golden {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	head, tail := []byte("unlucky: 1\n"), []byte("\n...\n")
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := parse(data, "fuzz.yaml")
		if err != nil { // with its head and tail back, most mutations get further
			_, body, _ := bytes.Cut(data, head)
			body, _ = bytes.CutSuffix(body, tail)
			if file, err = parse(slices.Concat(head, body, tail), "fuzz.yaml"); err != nil {
				return
			}
		}
		once, err := file.Marshal()
		if err != nil {
			t.Fatalf("read, but does not marshal: %v", err)
		}
		back, err := parse(once, "once.yaml")
		if err != nil {
			t.Fatalf("marshals to what is not read: %v\n%s", err, once)
		}
		if d := cmp.Diff(file, back, same); d != "" {
			t.Fatalf("values lost:\n%s", d)
		}
		twice, err := back.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(once, twice) {
			t.Fatalf("marshals differently:\n%s\n%s", once, twice)
		}
	})
}

// hard are texts that YAML, or a writer of it, is known to lose something of.
var hard = []string{
	" ", "  ", "\t", "\n", "\n\n", "\n\n\n", " \n", "\n ", "\t\n", "\n\t", "\n   a\n", "\n\n  a\n b\n\n", "\n\ta\n", "  a\nb\n", "\ta\nb", "\ta\n",
	"a\n", "a\n\n\n", "a ", "a\t", " a", "a \nb", "a\t\nb", "a\n b ", "a\n ", "a\n\t", "a\n\n \n\n", "a\n  \n    b\n",
	"a\r\nb\r\n", "\r", "a\rb", "\r\n", "a\n\rb\n", "\u0085", "a\u0085b", "a\n\u0085b\n", "\u0085\n a", "\u2028", "a\u2028 b", "a\n\u2028\n  b", "\u2029a\nb", "a\u2029\nb", "\u00a0\n\u00a0",
	"\ufeff", "\ufeffa\nb", "a\n\ufeffb\n", "\x00", "a\x00\nb\n", "\x01\x02\x1f\x7f", "\x1b[2J\n", "\u009b31m\n", "\ufffe\uffff", "\ufffd\n", "\U0001f600\n\U0001f600", "\v\f\n",
	"\xff", "\xff\n\xfe\n", "a\xc3", "\xed\xa0\x80", "\n\xff",
	"...", "...\n", "\n...\n", "a\n...\nb", "---", "---\n", "\n--- a\n", "%YAML 1.1\n", "<<", "~", "null", "7", "0x7", "1:20", ".5", "yes", "y", "2026-05-17", "=",
	"# a", "a # b", "\n# a\n", "#\n#", "a\n# b\n\n# c\n", "'", "\"", "'\n\"", "\\", "\\n\n", "a: b", "a:\n", "- a", "- a\n- b\n", "&a *a", "*a", "!a", "!!binary aGk=", "|", ">\n", "|+\n\n", "[", "{}", "@", "`", "? a", "?",
	"a" + strings.Repeat(" b", 500), strings.Repeat("a", 2000) + "\n", strings.Repeat("\x01", 2000),
}

// A file of before the program's own version was saved is read, and written as it was.
func TestReadWithoutVersion(t *testing.T) {
	data, err := os.ReadFile("testdata/crash.yaml")
	if err != nil {
		t.Fatal(err)
	}
	older := regexp.MustCompile(`(?m)^  unlucky: .*\n`).ReplaceAll(data, nil)
	if len(older) == len(data) {
		t.Fatal("the golden has no version of the program")
	}
	f, err := parse(older, "older.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := f.Marshal(); err != nil || !bytes.Equal(again, older) {
		t.Errorf("it is written as\n%s, %v", again, err)
	}
}

// everywhere puts a text at every place of a saved seed that takes any.
var everywhere = map[string]func(f *File, text string){
	"command":         func(f *File, text string) { f.Command = text },
	"tools":           func(f *File, text string) { f.Tools = Tools{Clang: text, LLD: text, QEMU: text, Unlucky: text} },
	"plan.order":      func(f *File, text string) { f.Plan.Order = []string{text, "a", text} },
	"plan.paddings":   func(f *File, text string) { f.Plan.Paddings[1].Section = text },
	"passing":         func(f *File, text string) { f.Minimized.Passing = text },
	"match":           func(f *File, text string) { f.Minimized.Match = text },
	"faces":           func(f *File, text string) { f.Minimized.Faces[text] = 2 },
	"name":            func(f *File, text string) { f.Minimized.Culprits[0].Functions[0].Name = text },
	"section":         func(f *File, text string) { f.Minimized.Culprits[0].Functions[0].Section = text },
	"switches":        func(f *File, text string) { f.Minimized.Switches[0].Append = text },
	"twin":            func(f *File, text string) { f.Minimized.Twin.Order = []string{text} },
	"notes":           func(f *File, text string) { f.Minimized.Notes = []string{text, text} },
	"description":     func(f *File, text string) { f.Scenario.Description = text },
	"dir":             func(f *File, text string) { f.Scenario.Kernel.Package, f.Scenario.Kernel.Dir = "", "/"+text },
	"file of a patch": func(f *File, text string) { f.Scenario.Kernel.Patches[0].File = text },
	"patch": func(f *File, text string) {
		p := &f.Scenario.Kernel.Patches[0]
		p.Text = text + "\n" + p.Text + text
	},
	"config":          func(f *File, text string) { f.Scenario.Kernel.Config = text + "\nCONFIG_A=y\n" + text },
	"init":            func(f *File, text string) { f.Scenario.Guest.Init = text + "\n" + text },
	"machine and cpu": func(f *File, text string) { f.Scenario.Guest.Machine, f.Scenario.Guest.CPU = text, text },
	"append":          func(f *File, text string) { f.Scenario.Guest.Append = text },
	"qemu-args":       func(f *File, text string) { f.Scenario.Guest.QEMUArgs = []string{text, "-x", text} },
	"ablate":          func(f *File, text string) { f.Scenario.Guest.Ablate = []string{text} },
	"verdict": func(f *File, text string) {
		if re, err := regexp.Compile(regexp.QuoteMeta(text)); err == nil { // valid UTF-8
			f.Scenario.Verdict.Pass, f.Scenario.Verdict.Crash = scenarios.Regexp{Regexp: re}, scenarios.Regexp{Regexp: re}
		}
	},
}

// comesBack tells in what a saved seed differs from f.
func comesBack(f File) error {
	data, err := f.Marshal()
	if err != nil {
		return err
	}
	back, err := parse(data, "7.yaml")
	if err != nil {
		return fmt.Errorf("marshals to what is not read: %w\n%q", err, data)
	}
	if d := cmp.Diff(f, back, same); d != "" {
		return fmt.Errorf("another value is read (-want +got):\n%s\n%q", d, data)
	}
	return nil
}

func TestTextsComeBack(t *testing.T) {
	for _, text := range hard {
		f := examples(t)["minimized"]
		for name, put := range everywhere {
			before, after := examples(t)["minimized"], examples(t)["minimized"]
			if put(&after, text); cmp.Equal(before, after, same) && (name != "verdict" || utf8.ValidString(text)) {
				t.Errorf("%s: %.50q is nowhere", name, text)
			}
			put(&f, text)
		}
		if err := comesBack(f); err != nil {
			t.Errorf("%.50q: %v", text, err)
		}
	}
}

// FuzzMarshal: whatever texts stand in a saved seed, it can be written, and is read
// back as it was.
func FuzzMarshal(f *testing.F) {
	// Three to an input, as running one takes long: TestTextsComeBack has each
	// at every place.
	for texts := range slices.Chunk(hard, 3) {
		f.Add("hang: "+texts[0], texts[len(texts)/2], texts[len(texts)-1])
	}
	f.Fuzz(func(t *testing.T, title, command, text string) {
		f := examples(t)["minimized"]
		if title != "" && isTitle(title) {
			f.Title, f.Titles = title, map[string]int{title: 1}
		}
		for i, name := range slices.Sorted(maps.Keys(everywhere)) {
			if s := []string{text, command}[i%2]; s != "" {
				everywhere[name](&f, s)
			}
		}
		if err := comesBack(f); err != nil {
			t.Fatal(err)
		}
	})
}

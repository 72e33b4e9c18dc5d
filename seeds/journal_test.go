package seeds

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"unlucky/qemu"
)

// header fills every field, so that a new one takes part in the tests.
func header() Header {
	var h Header
	v := reflect.ValueOf(&h).Elem()
	for i := range v.NumField() {
		v.Field(i).SetString(v.Type().Field(i).Name + " of old")
	}
	return h
}

func someRecords() []Record {
	return []Record{
		{Layout: Baseline, Verdict: Verdict{Kind: qemu.Pass, Boots: 1}, Plan: "p0", Image: "i0", Path: "twin-baseline.yaml", Millis: 700},
		{Layout: Seed(2), Verdict: Verdict{Kind: qemu.LinkFailed}, Note: "ld.lld: error: <vmlinux.lds>:51: \"x\"\nunable\x1b[2J — größe", Millis: 150},
		{Layout: Seed(0), Verdict: Verdict{Kind: qemu.Crash, Title: "int3 in f", Found: true, Boots: 3, Crashes: 2, Titles: map[string]int{"int3 in f": 1, "unexpected exit": 1}}, Plan: "p1", Addresses: "a1", Image: "i1", Path: "int3-in-f/0.yaml", Millis: 2100},
		{Layout: Seed(1), Verdict: Verdict{Kind: qemu.Hang, Title: "hang: no output after x", Boots: 2, Crashes: 2}, Millis: 60000},
	}
}

// writeJournal makes a journal of the records and returns its path.
func writeJournal(t testing.TB, records []Record) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a", "b", "sweep.journal")
	j := open(t, path)
	for _, r := range records {
		if err := j.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(records, j.Records(), layouts); d != "" {
		t.Errorf("records of an open journal (-want +got):\n%s", d)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string) *Journal {
	t.Helper()
	j, err := OpenJournal(path, header())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

// layouts lets cmp look into a Layout.
var layouts = cmp.AllowUnexported(ID{})

// What an earlier unlucky took for a layout that does not link, and was its own
// fault, counts as not tried.
func TestJournalMisplaced(t *testing.T) {
	records := someRecords()
	path := writeJournal(t, records)
	j := open(t, path)
	fault := Record{Layout: Seed(9), Verdict: Verdict{Kind: qemu.LinkFailed}, Note: "run_init_process is at 0xffffffff81200010, planned at 0xffffffff81001310: please report this"}
	if err := j.Append(fault); err != nil {
		t.Fatal(err)
	}
	j.Close()
	if d := cmp.Diff(records, open(t, path).Records(), layouts); d != "" {
		t.Error(d)
	}
	if _, got, _, err := ReadJournal(path); err != nil || len(got) != len(records) {
		t.Errorf("%d records, %v", len(got), err)
	}
}

func TestJournal(t *testing.T) {
	records := someRecords()
	path := writeJournal(t, records)
	golden := filepath.Join("testdata", "sweep.journal")
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
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
	j := open(t, path)
	if d := cmp.Diff(records, j.Records(), layouts); d != "" {
		t.Errorf("records read back (-want +got):\n%s", d)
	}
	if err := j.Append(Record{Layout: Seed(3), Verdict: Verdict{Kind: qemu.Pass}}); err != nil {
		t.Fatal(err)
	}
	j.Close()
	if got := len(open(t, path).Records()); got != len(records)+1 {
		t.Errorf("%d records after one more append", got)
	}
}

// Of several records of a layout the last counts, and infra is to be redone.
func TestJournalRecords(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{
		{"none", "", ""},
		{"order of the file", "3 pass, 1 crash, baseline pass, 2 pass", "3 pass, 1 crash, baseline pass, 2 pass"},
		{"infra", "1 pass, 2 infra, 3 pass", "1 pass, 3 pass"},
		{"infra redone", "1 infra, 2 pass, 1 crash", "2 pass, 1 crash"},
		{"last wins", "1 pass, 2 pass, 1 crash", "2 pass, 1 crash"},
		{"infra wins too", "1 pass, 2 pass, 1 infra", "2 pass"},
		{"baseline is not seed 0", "baseline infra, 0 pass", "0 pass"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "sweep.journal")
			j := open(t, path)
			for s := range strings.SplitSeq(test.in, ", ") {
				layout, kind, ok := strings.Cut(s, " ")
				if !ok {
					continue
				}
				l, err := ParseID(layout)
				if err != nil {
					t.Fatal(err)
				}
				if err := j.Append(Record{Layout: l, Verdict: Verdict{Kind: qemu.Kind(kind)}}); err != nil {
					t.Fatal(err)
				}
			}
			show := func(j *Journal) string {
				var out []string
				for _, r := range j.Records() {
					out = append(out, r.Layout.String()+" "+string(r.Kind))
				}
				return strings.Join(out, ", ")
			}
			if got := show(j); got != test.want {
				t.Errorf("while open: %q, want %q", got, test.want)
			}
			j.Close()
			if got := show(open(t, path)); got != test.want {
				t.Errorf("opened again: %q, want %q", got, test.want)
			}
		})
	}
}

func TestJournalOtherHeader(t *testing.T) {
	path := writeJournal(t, someRecords())
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	v := reflect.TypeFor[Header]()
	if v.NumField() == 0 {
		t.Fatal("the header has no fields")
	}
	for i := range v.NumField() {
		h := header()
		f := reflect.ValueOf(&h).Elem().Field(i)
		f.SetString("new")
		j, err := OpenJournal(path, h)
		if words := v.Field(i).Name == "Command" || v.Field(i).Name == "Verdict"; words && err == nil {
			j.Close()
			continue // which only say what digests are of
		}
		if err == nil {
			t.Errorf("another %s is not refused", v.Field(i).Name)
			continue
		}
		for _, want := range []string{path, fmt.Sprintf(`(was %q, is "new")`, v.Field(i).Name+" of old"), "use another -o"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("another %s: %q does not say %q", v.Field(i).Name, err, want)
			}
		}
	}
	h := header()
	h.Argv, h.Rules = "new", "new"
	h.Command, h.Verdict = "qemu -smp 2 -x -append 'a b' --", "pass=good 'crash=a b' limit=2s"
	old := header()
	old.Command, old.Verdict = "qemu -smp 1 -append 'a b' -m 1M --", "pass=good crash= limit=2s"
	want := `QEMU arguments (was -smp 1 -m 1M, is -smp 2 -x), verdict rules (was crash=, is 'crash=a b')`
	if got := strings.Join(old.diff(h), ", "); got != want {
		t.Errorf("differs in %s\nwant       %s", got, want)
	}
	old.Command = "" // in the journal of an earlier unlucky
	if got := old.diff(h)[0]; got != `QEMU arguments (was "Argv of old", is "new")` {
		t.Errorf("differs in %s", got)
	}
	h = header()
	h.Object, h.QEMU, h.Strategy = strings.Repeat("0a", 32), "8.0", "lld/1"
	_, err = OpenJournal(path, h)
	want = fmt.Sprintf(`journal %s: belongs to other work, which differs in strategy (was "Strategy of old", is "lld/1"), QEMU (was "QEMU of old", is "8.0"), vmlinux.o (was "Object of old", is 0a0a0a0a0a0a); go on with the old settings, or use another -o`, path)
	if err == nil || err.Error() != want {
		t.Errorf("error %v\nwant %s", err, want)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the journal has changed: %v", err)
	}
}

// A journal without a verdict is nobody's: it begins anew under another header.
func TestJournalNobodys(t *testing.T) {
	path := writeJournal(t, nil)
	h := header()
	h.QEMU = "8.0"
	j, err := OpenJournal(path, h)
	if err != nil {
		t.Fatal(err)
	}
	err = j.Append(someRecords()[0])
	if err := errors.Join(err, j.Close()); err != nil {
		t.Fatal(err)
	}
	have, records, damage, err := ReadJournal(path)
	if err != nil || damage != "" || *have != h || len(records) != 1 {
		t.Errorf("%+v, %d records, %q, %v", have, len(records), damage, err)
	}
	if _, err := OpenJournal(path, header()); err == nil {
		t.Error("with a verdict, too")
	}
}

func TestJournalLock(t *testing.T) {
	path := writeJournal(t, nil)
	j := open(t, path)
	if _, err := OpenJournal(path, header()); err == nil || !strings.Contains(err.Error(), "another unlucky is writing it") {
		t.Errorf("a second sweep: %v", err)
	}
	if err := j.Append(someRecords()[0]); err != nil {
		t.Errorf("the first one after it: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
	if err := j.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if err := j.Append(someRecords()[0]); !errors.Is(err, os.ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
	open(t, path)
}

// A file system without locks keeps no sweep from its journal, which says so; any
// other fault of it does.
func TestJournalNoLocks(t *testing.T) {
	real := flock
	defer func() { flock = real }()
	path := writeJournal(t, someRecords()[:1])
	if j := open(t, path); j.Unlocked() != "" {
		t.Errorf("a journal that is locked says %q", j.Unlocked())
	} else if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	for _, errno := range []syscall.Errno{syscall.ENOLCK, syscall.ENOSYS, syscall.EOPNOTSUPP} {
		flock = func(int, int) error { return errno }
		j := open(t, path)
		if want := path + ": its file system has no locks"; !strings.HasPrefix(j.Unlocked(), want) {
			t.Errorf("%v: it says %q, want %q", errno, j.Unlocked(), want)
		}
		if err := errors.Join(j.Append(someRecords()[1]), j.Close()); err != nil {
			t.Errorf("%v: %v", errno, err)
		}
	}
	flock = func(int, int) error { return syscall.EIO }
	if _, err := OpenJournal(path, header()); !errors.Is(err, syscall.EIO) {
		t.Errorf("a lock that fails otherwise: %v", err)
	}
}

// A process that dies leaves a journal cut at any byte. It opens, holds a
// prefix of the records, and goes on.
func TestJournalCutAnywhere(t *testing.T) {
	records := someRecords()[:2]
	whole, err := os.ReadFile(writeJournal(t, records))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	more := Record{Layout: Seed(99), Verdict: Verdict{Kind: qemu.Pass}}
	for n := range len(whole) + 1 {
		path := filepath.Join(dir, fmt.Sprint(n))
		if err := os.WriteFile(path, whole[:n], 0o644); err != nil {
			t.Fatal(err)
		}
		j, err := OpenJournal(path, header())
		if err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
		left := records[:max(0, bytes.Count(whole[:n], []byte("\n"))-2)]
		if whole := n == 0 || whole[n-1] == '\n' && bytes.Count(whole[:n], []byte("\n")) > 1; whole != (j.Mended() == "") {
			t.Fatalf("cut at %d, and said is %q", n, j.Mended())
		}
		if d := cmp.Diff(left, j.Records(), layouts, emptyIsNil); d != "" {
			t.Fatalf("cut at %d (-want +got):\n%s", n, d)
		}
		if err := j.Append(more); err != nil {
			t.Fatal(err)
		}
		j.Close()
		if j, err = OpenJournal(path, header()); err != nil {
			t.Fatalf("cut at %d, continued: %v", n, err)
		}
		if d := cmp.Diff(append(slices.Clip(left), more), j.Records(), layouts); d != "" {
			t.Fatalf("cut at %d, continued (-want +got):\n%s", n, d)
		}
		j.Close()
	}
}

// A journal of version 1 is read, stays as it is where it is refused, and is of this version
// once it can be written to.
func TestJournalVersion1(t *testing.T) {
	old, err := os.ReadFile("testdata/sweep-1.journal")
	if err != nil {
		t.Fatal(err)
	}
	records, more := someRecords(), Record{Layout: Seed(5), Verdict: Verdict{Kind: qemu.Pass}, Addresses: "a5"}
	for i := range records {
		records[i].Addresses = "" // by which none were the same
	}
	head := header()
	head.Sections = "" // functions, which alone moved then
	path := filepath.Join(t.TempDir(), "sweep.journal")
	if err := os.WriteFile(path, old, 0o644); err != nil {
		t.Fatal(err)
	}
	if h, got, damage, err := ReadJournal(path); err != nil || damage != "" || *h != head || !cmp.Equal(got, records, layouts) {
		t.Errorf("%+v, %+v, %q, %v", h, got, damage, err)
	}
	other := head
	other.Object = "another"
	if _, err := OpenJournal(path, other); err == nil {
		t.Error("another kernel's journal was opened")
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, old) {
		t.Errorf("reading it, or refusing it, has changed it: %v", err)
	}
	j, err := OpenJournal(path, head)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Append(more); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(append(records, more), j.Records(), layouts); d != "" {
		t.Errorf("records (-want +got):\n%s", d)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	want := "unlucky-journal 2\n" + string(old[len(journalVersion):])
	if now, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(now), want) || len(now) == len(want) {
		t.Errorf("%v; it is now\n%swant, with one record more,\n%s", err, now, want)
	}
}

// After a loss of power a block that was not written reads as zeros.
func TestJournalZerosAtEnd(t *testing.T) {
	path := writeJournal(t, someRecords())
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := len(journalVersion); n <= len(whole); n++ {
		data := append(slices.Clone(whole[:n]), make([]byte, 4096)...)
		_, records, good, bad, err := parseJournal(data)
		if want := max(0, bytes.Count(whole[:n], []byte("\n"))-2); err != nil || bad != nil || len(records) != want || good > n {
			t.Fatalf("zeros from %d: %d records in %d bytes, %v, %v; want %d", n, len(records), good, bad, err, want)
		}
	}
}

var emptyIsNil = cmp.Transformer("nil", func(r []Record) []Record { return append([]Record{}, r...) })

// The middle of a journal is not broken by dying, but by hand or by the disk:
// with any byte changed, all records before it are read and none behind it, and
// what is not half a line is told, with its line.
func TestJournalDamaged(t *testing.T) {
	records := someRecords()
	whole, err := os.ReadFile(writeJournal(t, records))
	if err != nil {
		t.Fatal(err)
	}
	header := bytes.IndexByte(whole[len(journalVersion):], '\n') + len(journalVersion) + 1
	for n := range whole {
		for _, flip := range []byte{1, 0x20, 0xff} {
			data := slices.Clone(whole)
			data[n] ^= flip
			_, got, good, bad, err := parseJournal(data)
			line := bytes.Count(whole[:n], []byte("\n")) + 1
			if n < header {
				if err == nil || line > 1 && !strings.HasPrefix(err.Error(), "line 2, the header, is damaged") {
					t.Fatalf("byte %d changed: error %v does not name line %d", n, err, line)
				}
				continue
			}
			if err != nil || good > n || !slices.EqualFunc(got, records[:line-3], func(a, b Record) bool { return cmp.Equal(a, b, layouts) }) {
				t.Fatalf("byte %d changed, in line %d: %d records in %d bytes, %v", n, line, len(got), good, err)
			}
			if half := !bytes.Contains(data[good:], []byte("\n")); half != (bad == nil) ||
				!half && !strings.HasPrefix(bad.Error(), fmt.Sprintf("line %d is damaged", line)) {
				t.Fatalf("byte %d changed: %v is said of line %d", n, bad, line)
			}
		}
	}
}

// A damaged journal is read to its last good line, kept as it was, and goes on.
func TestJournalMended(t *testing.T) {
	records := someRecords()
	path := writeJournal(t, records)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))
	join := func(parts ...any) string {
		text := ""
		for _, p := range parts {
			text += fmt.Sprintf("%s", p)
		}
		return text
	}
	later := line(t, map[string]any{"layout": "7", "kind": "pass", "novelty": 1})
	for i, test := range []struct {
		name, data string
		left       int    // records
		want       string // behind the path; empty for a journal that is whole
		aside      bool
	}{
		{"whole", string(whole), 4, "", false},
		{"half a line", string(whole[:len(whole)-1]), 3, ": its last line was half written and is dropped: what it told of is done again", false},
		{"half a header", string(whole[:len(journalVersion)+5]), 0, ": not even its header was written whole: it begins anew", false},
		{"edited record", strings.Replace(string(whole), "int3 in f", "int3 in g", 1), 2,
			": line 5 is damaged, or another unlucky's (the checksum does not match): it and the 1 lines behind it are not believed; what they told of is done again, and the whole file is kept as sweep.journal.broken-N", true},
		{"empty line", join(lines[0], lines[1], "\n", lines[2]), 0,
			": line 3 is damaged, or another unlucky's (the checksum does not match): it and the 1 lines behind it are not believed; what they told of is done again, and the whole file is kept as sweep.journal.broken-N", true},
		{"another version's last line", join(whole, later), 4,
			`: line 7 is damaged, or another unlucky's (json: unknown field "novelty"): it and the 0 lines behind it are not believed; what they told of is done again, and the whole file is kept as sweep.journal.broken-N`, true},
		{"another version's kind", join(lines[0], lines[1], line(t, map[string]any{"layout": "7", "kind": "quiet"}), lines[2], lines[3]), 0,
			`: line 3 is damaged, or another unlucky's ("quiet" is no kind of verdict): it and the 2 lines behind it are not believed; what they told of is done again, and the whole file is kept as sweep.journal.broken-N`, true},
		{"line feed lost", join(lines[0], lines[1], bytes.TrimSpace(lines[2]), " ", lines[3], lines[4]), 0,
			": line 3 is damaged, or another unlucky's (the checksum does not match): it and the 1 lines behind it are not believed; what they told of is done again, and the whole file is kept as sweep.journal.broken-N", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "sweep.journal")
			if err := os.WriteFile(path, []byte(test.data), 0o644); err != nil {
				t.Fatal(err)
			}
			free := i % 3 // an earlier one must not be replaced
			for n := 1; n <= free; n++ {
				if err := os.Symlink("nowhere", fmt.Sprintf("%s.broken-%d", path, n)); err != nil {
					t.Fatal(err)
				}
			}
			aside := fmt.Sprintf("%s.broken-%d", path, free+1)
			_, read, damage, err := ReadJournal(path)
			if err != nil || len(read) != test.left || (damage != "") != test.aside {
				t.Errorf("only read: %d records, %q, %v", len(read), damage, err)
			}
			j := open(t, path)
			if want := strings.Replace(test.want, "broken-N", filepath.Base(aside)[len("sweep.journal."):], 1); want != strings.TrimPrefix(j.Mended(), path) {
				t.Errorf("said %q, want %q", j.Mended(), want)
			}
			if d := cmp.Diff(records[:test.left], j.Records(), layouts, emptyIsNil); d != "" {
				t.Errorf("records (-want +got):\n%s", d)
			}
			if kept, err := os.ReadFile(aside); test.aside && string(kept) != test.data || !test.aside && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s holds %q, %v", aside, kept, err)
			}
			more := Record{Layout: Seed(99), Verdict: Verdict{Kind: qemu.Pass}}
			if err := j.Append(more); err != nil {
				t.Fatal(err)
			}
			j.Close()
			j = open(t, path)
			if d := cmp.Diff(append(slices.Clone(records[:test.left]), more), j.Records(), layouts); d != "" || j.Mended() != "" {
				t.Errorf("gone on with (-want +got):\n%s%s", d, j.Mended())
			}
		})
	}
}

func TestJournalRefused(t *testing.T) {
	path := writeJournal(t, someRecords())
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, data, want string }{
		{"another program's", "hello\n", "is not a journal of unlucky; use another -o"},
		{"a line without its end", "hello", "is not a journal of unlucky; use another -o"},
		{"newer", "unlucky-journal 3\nwhatever\n", `its version is "3", and this unlucky writes version 2; use the unlucky that wrote it, or another -o`},
		{"edited header", strings.Replace(string(whole), "Accel of old", "Accel of mine", 1), "line 2, the header, is damaged: the checksum does not match; restore the file, move it away to have its layouts done again, or use another -o"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(test.data), 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := OpenJournal(path, header())
			if want := "journal " + path + ": " + test.want; err == nil || err.Error() != want {
				t.Errorf("error %v\nwant  %s", err, want)
			}
			if after, err := os.ReadFile(path); err != nil || string(after) != test.data {
				t.Errorf("the file was written: %q, %v", after, err)
			}
		})
	}
}

func line(t testing.TB, v any) string {
	data, err := encodeLine(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// brokenDisk is a file whose writes stop halfway while full is set.
type brokenDisk struct {
	*os.File
	full, noSync, noTruncate bool
}

func (d *brokenDisk) WriteAt(p []byte, off int64) (int, error) {
	if d.full {
		n, _ := d.File.WriteAt(p[:len(p)/2], off)
		return n, syscall.ENOSPC
	}
	return d.File.WriteAt(p, off)
}

func (d *brokenDisk) Sync() error {
	if d.noSync {
		return syscall.EIO
	}
	return d.File.Sync()
}

func (d *brokenDisk) Truncate(size int64) error {
	if d.noTruncate {
		return syscall.EIO
	}
	return d.File.Truncate(size)
}

// Whatever a disk does to a write, a resume finds every record that was
// acknowledged and none that was not.
func TestJournalDiskFails(t *testing.T) {
	r := someRecords()
	for _, test := range []struct {
		name    string
		disk    brokenDisk
		want    error
		goesOn  bool // once the disk is well again
		records []Record
	}{
		{"full", brokenDisk{full: true}, syscall.ENOSPC, true, []Record{r[0], r[2]}},
		{"full and stuck", brokenDisk{full: true, noTruncate: true}, syscall.ENOSPC, false, r[:1]},
		{"no sync", brokenDisk{noSync: true}, syscall.EIO, false, r[:1]},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := writeJournal(t, r[:1])
			j := open(t, path)
			disk := test.disk
			disk.File = j.file.(*os.File)
			j.file = &disk
			err := j.Append(r[1])
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), path+": layout 2 is not recorded: ") {
				t.Errorf("error %v", err)
			}
			disk = brokenDisk{File: disk.File}
			if err := j.Append(r[2]); (err == nil) != test.goesOn {
				t.Errorf("the next append: %v", err)
			}
			if d := cmp.Diff(test.records, j.Records(), layouts); d != "" {
				t.Errorf("records while open (-want +got):\n%s", d)
			}
			j.Close()
			if d := cmp.Diff(test.records, open(t, path).Records(), layouts); d != "" {
				t.Errorf("records read back (-want +got):\n%s", d)
			}
		})
	}
}

func TestJournalConcurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sweep.journal")
	j := open(t, path)
	const workers, each = 4, 25
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				if err := j.Append(Record{Layout: Seed(uint32(w*each + i)), Verdict: Verdict{Kind: qemu.Pass}}); err != nil {
					t.Error(err)
				}
				j.Records()
			}
		})
	}
	wg.Wait()
	j.Close()
	if got := open(t, path).Records(); len(got) != workers*each {
		t.Errorf("%d records, want %d", len(got), workers*each)
	}
}

// FuzzJournal: no bytes make the reader panic, and what it takes as good
// reads again as the same; a journal cut anywhere holds a prefix of its
// records. With sum, every line gets its checksum, so that what is behind the
// checksum is met too.
func FuzzJournal(f *testing.F) {
	path := writeJournal(f, someRecords())
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	bare := regexp.MustCompile("(?m)^[0-9a-f]{8} ").ReplaceAll(whole[len(journalVersion):], nil)
	f.Add(whole, uint(len(whole)), false)
	f.Add(whole[:len(whole)-3], uint(70), false)
	f.Add([]byte("unlucky-journal 1\n"+string(whole[len(journalVersion):])), uint(70), false)
	f.Add([]byte("unlucky-journal 3\n"), uint(3), false)
	f.Add(bare, uint(300), true)
	f.Add([]byte("{}\n{}\n{}"), uint(60), true)
	f.Fuzz(func(t *testing.T, data []byte, cut uint, sum bool) {
		if sum {
			text := journalVersion
			for line := range bytes.Lines(data) {
				text += fmt.Sprintf("%08x %s", crc32.ChecksumIEEE(bytes.TrimSuffix(line, []byte("\n"))), line)
			}
			data = []byte(text)
		}
		h, records, good, bad, err := parseJournal(data)
		if err != nil {
			return
		}
		if good > len(data) {
			t.Fatalf("%d of %d bytes are good", good, len(data))
		}
		if bad == nil && bytes.Contains(data[good:], []byte("\n")) && good > 0 {
			t.Fatalf("whole lines behind byte %d are dropped, and nothing is said", good)
		}
		_, again, goodAgain, bad, err := parseJournal(data[:good])
		if err != nil || bad != nil || goodAgain != good {
			t.Fatalf("the good part alone: %d of %d bytes, %v, %v", goodAgain, good, bad, err)
		}
		if d := cmp.Diff(records, again, layouts); d != "" {
			t.Fatalf("the good part alone (-want +got):\n%s", d)
		}
		n := int(cut % uint(good+1))
		hcut, prefix, _, bad, err := parseJournal(data[:n])
		if err != nil || bad != nil {
			t.Fatalf("cut at %d: %v, %v", n, bad, err)
		}
		if len(prefix) > 0 && hcut != h || len(prefix) > len(records) {
			t.Fatalf("cut at %d: another header, or more records", n)
		}
		if d := cmp.Diff(slices.Clip(records[:len(prefix)]), prefix, layouts, emptyIsNil); d != "" {
			t.Fatalf("cut at %d (-want +got):\n%s", n, d)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	j := open(b, filepath.Join(b.TempDir(), "sweep.journal"))
	r := someRecords()[2]
	for b.Loop() {
		if err := j.Append(r); err != nil {
			b.Fatal(err)
		}
	}
}

func TestReadJournal(t *testing.T) {
	path := writeJournal(t, someRecords())
	h, records, damage, err := ReadJournal(path)
	if err != nil || h == nil || *h != header() || damage != "" {
		t.Errorf("header %v, %q, %v", h, damage, err)
	}
	if d := cmp.Diff(someRecords(), records, layouts); d != "" {
		t.Errorf("records (-want +got):\n%s", d)
	}

	// A sweep that writes it is no obstacle, and no half of a line counts. Of
	// a layout that was done again the last record does.
	j := open(t, path)
	again := someRecords()[3]
	again.Kind = qemu.Infra
	if err := j.Append(again); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(`01234567 {"layout":"9`)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h, records, damage, err = ReadJournal(path)
	if err != nil || h == nil || damage != "" {
		t.Errorf("while it is written: %v, %q, %v", h, damage, err)
	}
	if d := cmp.Diff(someRecords()[:3], records, layouts); d != "" {
		t.Errorf("records while it is written (-want +got):\n%s", d)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("reading changed it, %v", err)
	}
	for name, data := range map[string]string{"empty": "", "cut": journalVersion + "0123"} {
		if err := os.WriteFile(path+name, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"empty", "cut", "none"} {
		if h, _, damage, err := ReadJournal(path + name); h != nil || damage != "" || err != nil {
			t.Errorf("%s: %v, %v", name, h, err)
		}
	}
	if err := os.WriteFile(path, []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if h, _, _, err := ReadJournal(path); h != nil || err == nil || !strings.Contains(err.Error(), path+": is not a journal") {
		t.Errorf("another file: %v, %v", h, err)
	}
}

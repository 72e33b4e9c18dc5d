package seeds

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kballard/go-shellquote"
	"golang.org/x/sys/unix"

	"unlucky/host"
	"unlucky/qemu"
)

// journalMagic starts the first line of every journal; its version follows.
// In version 1 each record has its image's digest, by which layouts were the same.
const (
	journalMagic    = "unlucky-journal "
	journalVersion1 = journalMagic + "1\n"
	journalVersion  = journalMagic + "2\n" // as long
)

// Header says which sweep a journal belongs to. Verdicts are comparable only
// where two are the same. Digests are SHA-256 in hex.
type Header struct {
	Scenario string `json:"scenario"`       // name
	Strategy string `json:"strategy"`       // with its version, "text/1"; never auto
	Accel    string `json:"accel"`          // kvm or tcg, or qemu.ByProgram
	QEMU     string `json:"qemu"`           // version; empty where guest.command boots
	LLD      string `json:"lld"`            // version: another lld may lay out another image
	Object   string `json:"object"`         // digest of vmlinux.o
	Initrd   string `json:"initrd"`         // digest
	Argv     string `json:"argv"`           // digest of the command line that boots, without paths that depend on the layout
	Rules    string `json:"rules"`          // digest of the verdict's rules
	Plan     string `json:"plan,omitempty"` // digest of the plan that is minimized
	// Sections says which input sections move, as kernel.sections does.
	Sections string `json:"sections,omitempty"`
	// Command and Verdict are what Argv and Rules are digests of, as words for a
	// shell. They are for messages alone, and missing in older journals.
	Command string `json:"command,omitempty"`
	Verdict string `json:"verdict,omitempty"`
}

// Same tells whether verdicts under both headers are comparable.
func (h Header) Same(other Header) bool {
	h.Command, h.Verdict = other.Command, other.Verdict
	return h == other
}

// diff lists in words how the header now differs from h, the journal's.
func (h Header) diff(now Header) []string {
	var out []string
	arguments := "QEMU arguments"
	if now.Accel == qemu.ByProgram {
		arguments = "guest.command or guest.append"
	}
	for _, f := range []struct{ name, was, is, wasWords, isWords string }{
		{name: "scenario", was: h.Scenario, is: now.Scenario},
		{name: "strategy", was: h.Strategy, is: now.Strategy},
		{name: "accelerator", was: h.Accel, is: now.Accel},
		{name: "QEMU", was: h.QEMU, is: now.QEMU},
		{name: "lld", was: h.LLD, is: now.LLD},
		{name: "vmlinux.o", was: h.Object, is: now.Object},
		{name: "initrd", was: h.Initrd, is: now.Initrd},
		{arguments, h.Argv, now.Argv, h.Command, now.Command},
		{"verdict rules", h.Rules, now.Rules, h.Verdict, now.Verdict},
		{name: "the sections that move", was: h.Sections, is: now.Sections},
		{name: "the layout to minimize", was: h.Plan, is: now.Plan},
	} {
		if f.was == f.is {
			continue
		}
		was, is := brief(f.was), brief(f.is)
		if f.wasWords != f.isWords && f.wasWords != "" && f.isWords != "" {
			had, has := options(f.wasWords), options(f.isWords)
			was, is = without(had, has), without(has, had)
		}
		out = append(out, fmt.Sprintf("%s (was %s, is %s)", f.name, was, is))
	}
	return out
}

// options cuts a command line before each option.
func options(words string) (out []string) {
	all, err := shellquote.Split(words)
	if err != nil { // it comes out of a file
		return []string{words}
	}
	for _, w := range all {
		if n := len(out); n > 0 && strings.HasPrefix(out[n-1], "-") && !strings.HasPrefix(w, "-") {
			out[n-1] += " " + shellquote.Join(w)
		} else {
			out = append(out, shellquote.Join(w))
		}
	}
	return out
}

// without lists the options that others do not have.
func without(options, others []string) string {
	text := strings.Join(slices.DeleteFunc(slices.Clone(options), func(o string) bool { return slices.Contains(others, o) }), " ")
	return cmp.Or(text, "without")
}

// brief shortens a digest for a message.
func brief(s string) string {
	if isDigest(s) {
		return s[:12]
	}
	return strconv.Quote(s)
}

// Record is what the sweep learnt of one layout.
type Record struct {
	Layout ID `json:"layout"`
	Verdict
	Plan string `json:"plan,omitempty"` // digest, SHA-256 in hex
	// Addresses is the digest of what the plan gives (linker.Image.Layout), by which layouts
	// are the same. Image is that of vmlinux: of what is saved, and where Addresses is empty.
	Addresses string    `json:"addresses,omitempty"`
	Image     string    `json:"image,omitempty"`
	Append    string    `json:"append,omitempty"` // what was added to the kernel command line
	Path      string    `json:"path,omitempty"`   // of the saved seed, relative to the store's folder
	Millis    int64     `json:"millis"`           // wall-clock time spent on the layout
	At        time.Time `json:"at,omitzero"`      // of the verdict, UTC, whole seconds; zero in journals of an earlier unlucky
	// Inserted is how many pieces of code the linker has added to text for its
	// addresses: patches of an erratum, veneers.
	Inserted int    `json:"inserted,omitempty"`
	Intact   int    `json:"intact,omitempty"` // boots that passed with their code in memory intact, of those that minimize has looked into
	Note     string `json:"note,omitempty"`   // one line for the reader: the linker's words, for instance
}

// Journal is the append-only record of one sweep, or of the minimizing of one
// layout: a version line, the header, then one line a layout in the order of completion. A line is the
// CRC-32 (IEEE) of its JSON in eight hex digits, a space, and the JSON.
//
// A process that dies at any moment, or a machine that loses its power, costs
// at most the record that was being written: it is dropped when the journal
// is opened again. A journal that is damaged before that is read to the last
// good line, and kept as it was beside the new one.
type Journal struct {
	path   string
	mended string // what was dropped when it was opened, in words
	locked bool

	mu      sync.Mutex
	file    file
	size    int64 // of the good part: where the next line goes
	records []Record
	failed  error // set once what is on the disk is no longer known
}

// file is the part of *os.File that a journal writes through; tests stand a
// full disk in its place.
type file interface {
	io.WriterAt
	io.Closer
	Truncate(size int64) error
	Sync() error
}

// ReadJournal returns the header of a journal, nil where there is none yet, and
// what [Journal.Records] gives, up to the last good line; damage says in words
// what is behind that. It neither locks nor mends the journal: another process
// may be writing it, so a half-written last line is no damage.
func ReadJournal(path string) (h *Header, records []Record, damage string, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, "", nil
	} else if err != nil {
		return nil, nil, "", fmt.Errorf("journal: %w", err)
	}
	have, all, good, bad, err := parseJournal(data)
	if err != nil {
		return nil, nil, "", fmt.Errorf("journal %s: %w", path, err)
	}
	if bad != nil {
		damage = fmt.Sprintf("journal %s: %v", path, bad)
	}
	if good == 0 {
		return nil, nil, damage, nil
	}
	return &have, latest(all), damage, nil
}

// OpenJournal opens the journal at path, or creates it together with its
// folder. The journal stays locked until Close, so two sweeps never share
// one, unless the file system has no locks ([Journal.Unlocked]). A half-written
// last line is dropped from the file. A journal that is damaged is cut behind
// its last good line, once the whole of it is safe beside it as PATH.broken-N.
// [Journal.Mended] tells of both. A journal with another header, of a newer
// version, or without a readable header is an error and stays as it is, and so
// is one that is a link: it could lead anywhere.
func OpenJournal(path string, h Header) (*Journal, error) {
	if err := mkdirAll(filepath.Dir(path)); err != nil {
		return nil, roomFor(path, fmt.Errorf("journal: %w", err))
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o644)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("journal %s is a link, and is not written through: remove the link, or use another -o", path)
	}
	if err != nil {
		return nil, roomFor(path, fmt.Errorf("journal: %w", err))
	}
	j := &Journal{path: path, file: f}
	if err := j.load(f, h); err != nil {
		f.Close()
		return nil, roomFor(path, fmt.Errorf("journal %s: %w", path, err))
	}
	return j, nil
}

// Mended says in words what was dropped from the journal when it was opened;
// it is empty for one that was whole.
func (j *Journal) Mended() string { return j.mended }

// Unlocked says in words what that means if the file system has no locks; it
// is empty for a journal that is locked.
func (j *Journal) Unlocked() string {
	if j.locked {
		return ""
	}
	return fmt.Sprintf("%s: its file system has no locks: nothing keeps another unlucky from writing it too", j.path)
}

// flock is a system call; tests stand a file system without locks in its place.
var flock = unix.Flock

// load locks and reads the journal, mends its end and writes the header of a
// new one.
func (j *Journal) load(f *os.File, h Header) error {
	// The lock is on the open file itself and ends with the process, however
	// that dies.
	switch err := flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case err == nil:
		j.locked = true
	case errors.Is(err, unix.EWOULDBLOCK):
		return fmt.Errorf("another unlucky%s is writing it; wait for that to end, or use another -o", host.LockHolder(j.path))
	case errors.Is(err, unix.ENOLCK), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
		// Folders that machines share often have none (Lustre, by default; NFS
		// without its lock service): a journal has one writer all the same.
	default:
		return fmt.Errorf("lock: %w", err)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	have, records, good, bad, err := parseJournal(data)
	if err != nil {
		return err
	}
	if good > 0 && records == nil && bad == nil && !have.Same(h) {
		good = 0 // nobody's work yet: it begins anew
		data = data[:0]
		if err := f.Truncate(0); err != nil {
			return err
		}
	}
	if good > 0 {
		if d := have.diff(h); len(d) > 0 {
			return fmt.Errorf("belongs to other work, which differs in %s; go on with the old settings, or use another -o", strings.Join(d, ", "))
		}
	}
	j.records, j.size = records, int64(good)
	if good < len(data) {
		switch {
		case bad != nil:
			aside, err := setAside(j.path, data)
			if err != nil {
				return err
			}
			j.mended = fmt.Sprintf("%s: %v; what they told of is done again, and the whole file is kept as %s", j.path, bad, filepath.Base(aside))
		case good == 0:
			j.mended = fmt.Sprintf("%s: not even its header was written whole: it begins anew", j.path)
		default:
			j.mended = fmt.Sprintf("%s: its last line was half written and is dropped: what it told of is done again", j.path)
		}
		if err := f.Truncate(j.size); err != nil {
			return fmt.Errorf("cut it behind its last good line: %w", err)
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if good > 0 {
		if bytes.HasPrefix(data, []byte(journalVersion1)) { // what follows may be of this version
			if _, err := f.WriteAt([]byte(journalVersion), 0); err != nil {
				return err
			}
			return f.Sync()
		}
		return nil
	}
	line, err := encodeLine(h)
	if err != nil {
		return err
	}
	if err := j.write(append([]byte(journalVersion), line...)); err != nil {
		return err
	}
	return syncDir(filepath.Dir(j.path))
}

// setAside keeps a damaged journal under a name that is free, and returns that.
func setAside(path string, data []byte) (string, error) {
	for n := 1; ; n++ {
		aside := fmt.Sprintf("%s.broken-%d", path, n)
		if _, err := os.Lstat(aside); err == nil {
			continue
		} else if !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		if err := writeFile(aside, data); err != nil {
			return "", fmt.Errorf("keep the damaged journal: %w", err)
		}
		return aside, nil
	}
}

// Records returns what is known of each layout, by plan and command line: of
// several records of one the last, in the order of the file. Those whose last
// record is infra, or of a layout that was not the planned one, are left out:
// nothing was learnt, and they are to be done again.
func (j *Journal) Records() []Record {
	j.mu.Lock()
	defer j.mu.Unlock()
	return latest(j.records)
}

func latest(records []Record) []Record {
	type key struct {
		layout       ID
		plan, append string
	}
	last := make(map[key]int, len(records))
	for i, r := range records {
		last[key{r.Layout, r.Plan, r.Append}] = i
	}
	var out []Record
	for i, r := range records {
		if last[key{r.Layout, r.Plan, r.Append}] == i && r.Kind != qemu.Infra && !r.misplaced() {
			out = append(out, r)
		}
	}
	return out
}

// misplaced tells a layout that was linked at other addresses than planned, by a
// fault of an earlier unlucky, which took that for one that does not link.
func (r Record) misplaced() bool {
	return r.Kind == qemu.LinkFailed && misplacedNote.MatchString(r.Note)
}

var misplacedNote = regexp.MustCompile(` is at 0x[0-9a-f]+, planned at 0x[0-9a-f]+: please report this$`)

// Append writes a record and returns once it is on the disk. After an error
// (a full disk, for instance) the journal holds what it held before, and may
// be appended to again unless even that failed. It may be called from several
// goroutines at once.
func (j *Journal) Append(r Record) error {
	line, err := encodeLine(r)
	if err != nil {
		return fmt.Errorf("journal %s: layout %s: %w", j.path, r.Layout, err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.write(line); err != nil {
		return roomFor(j.path, fmt.Errorf("journal %s: layout %s is not recorded: %w", j.path, r.Layout, err))
	}
	j.records = append(j.records, r)
	return nil
}

// write puts data behind the good part and syncs it. On failure it takes the
// half-written rest away again.
func (j *Journal) write(data []byte) error {
	if j.failed != nil {
		return fmt.Errorf("an earlier write failed: %w", j.failed)
	}
	_, err := j.file.WriteAt(data, j.size)
	if err == nil {
		if err = j.file.Sync(); err != nil {
			// After a failed fsync the kernel may have thrown the pages
			// away: only a new reading tells what is on the disk.
			j.failed = err
		}
	}
	if err != nil {
		if terr := errors.Join(j.file.Truncate(j.size), j.file.Sync()); terr != nil {
			j.failed = err
		}
		return err
	}
	j.size += int64(len(data))
	return nil
}

// Close releases the journal. Nothing is lost without it: every record is on
// the disk already.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if errors.Is(j.failed, os.ErrClosed) {
		return nil
	}
	j.failed = os.ErrClosed
	if f, ok := j.file.(*os.File); ok {
		// A program that is just being started holds the file for a moment.
		unix.Flock(int(f.Fd()), unix.LOCK_UN)
	}
	return j.file.Close()
}

// encodeLine returns v as one checksummed line of the journal.
func encodeLine(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	text := b.Bytes() // ends in the only line feed: JSON escapes all others
	return fmt.Appendf(nil, "%08x %s", crc32.ChecksumIEEE(text[:len(text)-1]), text), nil
}

// decodeLine reads what encodeLine wrote, without the line feed.
func decodeLine(line []byte, v any) error {
	if len(line) < 9 || line[8] != ' ' ||
		string(line[:8]) != fmt.Sprintf("%08x", crc32.ChecksumIEEE(line[9:])) {
		return errors.New("the checksum does not match")
	}
	dec := json.NewDecoder(bytes.NewReader(line[9:]))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("something follows the record")
	}
	return nil
}

// check refuses a record that this program would not have written.
func (r Record) check() error {
	switch r.Kind {
	case qemu.Pass, qemu.Crash, qemu.Hang, qemu.LinkFailed, qemu.Duplicate, qemu.Infra:
		return nil
	}
	return fmt.Errorf("%.20q is no kind of verdict", r.Kind)
}

// parseJournal reads a journal. good is the length of its good lines, 0
// where not even the header was written whole: such a file is as good as
// none. What lies behind good is a line that was being written, or, where bad
// is set, lines of which bad says why they are not believed: the first is
// damaged, and nothing tells what has become of those behind it.
func parseJournal(data []byte) (h Header, records []Record, good int, bad, err error) {
	if !bytes.HasPrefix(data, []byte(journalVersion)) && !bytes.HasPrefix(data, []byte(journalVersion1)) {
		if text := string(data); strings.HasPrefix(journalVersion, text) || strings.HasPrefix(journalVersion1, text) {
			return h, nil, 0, nil, nil // empty, or cut within its first line
		}
		line, _, _ := bytes.Cut(data, []byte("\n"))
		if v, ok := bytes.CutPrefix(line, []byte(journalMagic)); ok {
			return h, nil, 0, nil, fmt.Errorf("its version is %.20q, and this unlucky writes version 2; use the unlucky that wrote it, or another -o", v)
		}
		return h, nil, 0, nil, errors.New("is not a journal of unlucky; use another -o")
	}
	pos := len(journalVersion)
	for n := 2; pos < len(data); n++ {
		line, rest, whole := bytes.Cut(data[pos:], []byte("\n"))
		if !whole {
			break
		}
		var err error
		var r Record
		if n == 2 {
			err = decodeLine(line, &h)
		} else if err = decodeLine(line, &r); err == nil {
			err = r.check()
		}
		switch {
		case err != nil && n > 2:
			behind := bytes.Count(rest, []byte("\n"))
			bad = fmt.Errorf("line %d is damaged, or another unlucky's (%w): it and the %d lines behind it are not believed", n, err, behind)
			return h, slices.Clip(records), good, bad, nil
		case err != nil && len(rest) == 0:
			return h, nil, 0, nil, nil // nothing is lost with it
		case err != nil:
			// Whose records these are, nobody knows: they may be those of another kernel.
			return h, nil, 0, nil, fmt.Errorf("line 2, the header, is damaged: %w; restore the file, move it away to have its layouts done again, or use another -o", err)
		}
		if n > 2 {
			records = append(records, r)
		}
		pos = len(data) - len(rest)
		good = pos
	}
	return h, slices.Clip(records), good, nil, nil
}

package seeds

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"unlucky/host"
	"unlucky/qemu"
)

// Store is the folder of one sweep, DIR/SCENARIO. Saved seeds lie in it by
// title, SLUG/SEED.yaml, and twins at its top, twin-SEED.yaml; the console of
// each is beside it. A Store may be used from several goroutines at once, and its
// folder by processes on several machines that save different layouts.
type Store struct {
	dir string
	mu  sync.Mutex // Save removes what it replaces, and folders left empty
}

// Open returns the store of a scenario in the folder dir. Nothing is made
// before the first Save.
func Open(dir, scenario string) (*Store, error) {
	if scenario == "" || strings.HasPrefix(scenario, ".") || strings.ContainsAny(scenario, "/\\\x00") {
		return nil, fmt.Errorf("scenario %q: its name cannot be the name of a folder", scenario)
	}
	return &Store{dir: filepath.Join(dir, scenario)}, nil
}

// Dir is the store's folder, DIR/SCENARIO. Other files of the sweep, the
// journal among them, may lie in it under names with a dot inside: no title's
// slug is like that.
func (s *Store) Dir() string { return s.dir }

// Save writes f and the console of its first boot, and returns the path of
// the seed file. Both are replaced atomically and are on the disk when it
// returns. A layout has one seed file in a store, and a minimized plan of it
// beside that: where it was saved before under another title, or as a twin,
// the older file is removed once the new one is safe. On an error no file is
// half-written and the older ones are still there.
func (s *Store) Save(f File, console []byte) (path string, err error) {
	data, err := f.Marshal()
	if err != nil {
		return "", fmt.Errorf("save layout %s: %w", f.Layout, err)
	}
	path = s.path(f)
	s.mu.Lock()
	defer s.mu.Unlock()
	if info, err := os.Lstat(filepath.Dir(path)); err == nil && !info.IsDir() && f.Kind != qemu.Pass {
		// Through somebody else's link it could be written anywhere.
		return "", fmt.Errorf("save layout %s: %s is no folder: remove it, or use another -o", f.Layout, filepath.Dir(path))
	}
	if err := f.write(path, data, console); err != nil {
		return "", err
	}
	if f.Plan != nil {
		return path, nil
	}
	if err := s.removeOlder(f.Layout, path); err != nil {
		return path, fmt.Errorf("layout %s is saved, but its older file is still there: %w", f.Layout, err)
	}
	return path, nil
}

// Write writes f to a file that need not be in a store, and the console, if
// there is one, beside it. Both are replaced atomically and are on the disk when
// it returns.
func (f File) Write(path string, console []byte) error {
	data, err := f.marshal(filepath.Base(path))
	if err != nil {
		return err
	}
	if console == nil {
		return writeFile(path, data)
	}
	return f.write(path, data, console)
}

func (f File) write(path string, data, console []byte) error {
	// The console first: where the seed file is, its console is too.
	err := writeFile(ConsolePath(path), console)
	if err == nil {
		err = writeFile(path, data)
	}
	if err != nil {
		return fmt.Errorf("save layout %s: %w", f.Layout, err)
	}
	return nil
}

// halfWritten is a temporary file of renameio for one of those that a sweep
// writes. What minimize writes has "min" or another name in it.
var halfWritten = regexp.MustCompile(`\A\.(?:(?:twin-)?(baseline|[0-9]+)\.(?:yaml|console|autopsy\.json)|(layout-[0-9a-f]+\.json\.gz)|(sweep.*\.journal)\.broken-[0-9]+)[0-9]+\z`)

// Tidy removes the temporary files that a killed sweep has left in the store,
// and no others that share it may be writing now: those of its journal, a name,
// and of the layouts that are its own. The baseline's stand for what belongs to
// all. It is to be called with the journal open, and so locked.
func (s *Store) Tidy(journal string, own func(ID) bool) error {
	mine := func(name string) bool {
		m := halfWritten.FindStringSubmatch(name)
		switch {
		case m == nil:
			return false
		case m[1] != "":
			l, err := ParseID(m[1])
			return err == nil && own(l)
		case m[2] != "":
			return own(Baseline)
		}
		return m[3] == journal
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	err = removeAny(s.dir, mine)
	for _, e := range entries {
		if e.IsDir() {
			dir := filepath.Join(s.dir, e.Name())
			err = errors.Join(err, removeAny(dir, mine))
			os.Remove(dir) // fails unless it was for such a file alone
		}
	}
	return err
}

// Tidy removes the temporary files that killed calls of [File.Write] have left
// for the seed file at path, and for those that have its name and a further
// extension.
func Tidy(path string) error {
	stem := regexp.QuoteMeta(strings.TrimSuffix(filepath.Base(path), ".yaml"))
	return removeAny(filepath.Dir(path), regexp.MustCompile(`\A\.`+stem+`\.(.*\.)?(yaml|console)[0-9]+\z`).MatchString)
}

// removeAny removes the files in dir of certain names. What others remove at the
// same time is gone all the same.
func removeAny(dir string, named func(string) bool) (err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !gone(err) {
		return err
	}
	err = nil
	for _, e := range entries {
		if e.Type().IsRegular() && named(e.Name()) {
			if rerr := os.Remove(filepath.Join(dir, e.Name())); !gone(rerr) {
				err = errors.Join(err, rerr)
			}
		}
	}
	return err
}

// gone tells whether a file or its folder has been removed, by another machine
// too (NFS: a stale handle).
func gone(err error) bool { return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESTALE) }

// roomFor adds to an error of a full disk what to do about it; path is the file
// that is not written.
func roomFor(path string, err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) || errors.As(err, new(*host.HintError)) {
		return err
	}
	return &host.HintError{Err: err, Hint: fmt.Sprintf("make room on the disk of %s, then run the same command again: it goes on where it stopped", filepath.Dir(path))}
}

// path is where f belongs in the store.
func (s *Store) path(f File) string {
	if f.Kind == qemu.Pass {
		return filepath.Join(s.dir, f.name())
	}
	return filepath.Join(s.dir, Slug(f.Title), f.name())
}

// removeOlder removes the seed files of layout l other than that at keep.
// Only what Save itself would have put there is touched: a copy that the user
// made in a folder of their own stays.
func (s *Store) removeOlder(l ID, keep string) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	candidates := []string{filepath.Join(s.dir, "twin-"+l.String()+".yaml")}
	for _, e := range entries {
		if e.IsDir() {
			candidates = append(candidates, filepath.Join(s.dir, e.Name(), l.String()+".yaml"))
		}
	}
	for _, path := range candidates {
		if path == keep {
			continue
		}
		old, err := Read(path)
		if err != nil || s.path(old) != path {
			continue
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		if err := os.Remove(ConsolePath(path)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if dir := filepath.Dir(path); dir != s.dir {
			os.Remove(dir) // fails where something else is in it, and rightly
		}
	}
	return nil
}

// SweepJournal is the name of a sweep's journal in the store's folder.
const SweepJournal = "sweep.journal"

// CulpritsJournal is the name of the journal of what verify has booted apart from
// its sweep.
const CulpritsJournal = "culprits.journal"

// MinimizedPath is where the answer of minimizing the seed file at path lies,
// unless the user chose another file.
func MinimizedPath(path string) string { return strings.TrimSuffix(path, ".yaml") + ".min.yaml" }

// ConsolePath is where the console of the seed file at path lies.
func ConsolePath(path string) string { return strings.TrimSuffix(path, ".yaml") + ".console" }

// maxSlug bounds a slug: a file name may have 255 bytes, and paths should
// stay readable.
const maxSlug = 80

// Slug turns a title into the name of a folder: "BUG: soft lockup in f" into
// "BUG--soft-lockup-in-f". Letters, digits and underscores stay, a space
// becomes "-" and a colon before a space another. A title that this does not
// tell from every other gets a dot and eight hex digits of its SHA-256 added.
// A slug is never empty and never starts with a dot or a dash.
func Slug(title string) string {
	var b strings.Builder
	lossy := false
	for i, r := range title {
		switch {
		case r == '_', '0' <= r && r <= '9', 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z':
			b.WriteRune(r)
		case r == ' ' && i > 0 && title[i-1] != ' ', r == ':' && strings.HasPrefix(title[i:], ": "):
			b.WriteByte('-')
		default:
			b.WriteByte('-')
			lossy = true
		}
	}
	slug := b.String()
	if short := strings.Trim(slug[:min(len(slug), maxSlug)], "-"); short != slug || slug == "" {
		slug, lossy = short, true
	}
	if lossy {
		slug = fmt.Sprintf("%s.%.4x", slug, sha256.Sum256([]byte(title)))
	}
	if strings.HasPrefix(slug, ".") {
		slug = "title" + slug
	}
	return slug
}

// writeTries is how often a folder may be removed before there is a file in it:
// each takes another shard that begins, or corrects a title, at this very moment.
const writeTries = 100

// writeFile replaces the file at path atomically, makes its folder if need
// be, and returns once both are on the disk. Another shard may find the folder
// empty, and remove it, until the temporary file is in it.
func writeFile(path string, data []byte) error {
	dir := filepath.Dir(path)
	var err error
	for range writeTries {
		if err = mkdirAll(dir); err == nil {
			// The temporary file must lie beside the real one: renameio would try the
			// system's folder first, and that may be another disk after all.
			err = renameio.WriteFile(path, data, 0o644, renameio.WithTempDir(dir))
		}
		if err == nil {
			err = syncDir(dir)
		}
		if !gone(err) && !errors.Is(err, os.ErrExist) { // made by another, and removed
			break
		}
	}
	if err != nil { // which may name the temporary file alone
		return roomFor(path, fmt.Errorf("writing %s: %w", path, err))
	}
	return nil
}

// mkdirAll is os.MkdirAll whose folders survive a loss of power.
func mkdirAll(dir string) error {
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := mkdirAll(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		if info, serr := os.Stat(dir); serr == nil && info.IsDir() {
			return nil // another goroutine was faster
		}
		if to, lerr := os.Readlink(dir); lerr == nil {
			return fmt.Errorf("%s is a link to %s, which is no folder: make that, or remove the link", dir, to)
		}
		return err
	}
	return syncDir(parent)
}

// syncDir makes the names in a folder survive a loss of power.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

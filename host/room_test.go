package host

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What a killed run left in a folder is removed by the next, what another one uses
// is not; a link with the name of a room is not followed.
func TestRooms(t *testing.T) {
	base := t.TempDir()
	left, results, link := filepath.Join(base, roomPrefix+"left"), filepath.Join(base, "unlucky-results"), filepath.Join(base, roomPrefix+"link")
	for _, dir := range []string{left, results} {
		if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "vmlinux"), nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	used, held, err := NewRoom(base)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := os.Symlink(results, link); err != nil {
		t.Fatal(err)
	}
	if held, err := lockRoom(link); !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link was taken for a room: %v, %v", held, err)
	}
	RemoveRooms(base)
	for path, want := range map[string]bool{left: false, used: true, results: true, filepath.Join(results, "vmlinux"): true, link: true} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", path, err == nil, want)
		}
	}
}

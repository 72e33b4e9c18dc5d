package host

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// roomPrefix begins the name of a room, and of nothing else.
const roomPrefix = ".unlucky-room-"

// NewRoom makes a folder in base and locks it for as long as the file is open.
func NewRoom(base string) (string, *os.File, error) {
	for {
		dir, err := os.MkdirTemp(base, roomPrefix)
		if err != nil {
			return "", nil, err
		}
		held, err := lockRoom(dir)
		if err == nil {
			return dir, held, nil
		}
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EWOULDBLOCK) {
			return "", nil, err
		} // somebody has taken it for a room that was left behind
	}
}

func lockRoom(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0) // others write to memoryDir, too
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := os.Stat(dir); err != nil { // gone between the two
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// RemoveRooms removes the rooms that killed runs of this user have left in base.
func RemoveRooms(base string) {
	rooms, _ := filepath.Glob(filepath.Join(base, roomPrefix+"*"))
	for _, dir := range rooms {
		var s unix.Stat_t
		if unix.Lstat(dir, &s) != nil || s.Mode&unix.S_IFMT != unix.S_IFDIR || int(s.Uid) != os.Getuid() {
			continue
		}
		if held, err := lockRoom(dir); err == nil { // else it is in use
			os.RemoveAll(dir)
			held.Close()
		}
	}
}

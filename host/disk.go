package host

import (
	"errors"
	"strings"
	"syscall"
)

// NoSpace tells a full disk, by what the system or a program said.
func NoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), "No space left on device")
}

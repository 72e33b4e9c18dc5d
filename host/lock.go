package host

import (
	"fmt"
	"os"
	"regexp"
	"strconv"

	"golang.org/x/sys/unix"
)

// LockHolder names another process that holds a lock on a file, for a message:
// " (process 1234)", or nothing where the kernel does not tell, as for a process
// in another container (proc_locks(5)).
func LockHolder(path string) string {
	var s unix.Stat_t
	if unix.Stat(path, &s) != nil {
		return ""
	}
	locks, _ := os.ReadFile("/proc/locks")
	at := fmt.Sprintf("%02x:%02x:%d", unix.Major(s.Dev), unix.Minor(s.Dev), s.Ino)
	holder := regexp.MustCompile(`(?m)^\d+: FLOCK +\S+ +\S+ +([1-9]\d*) ` + at + ` `)
	for _, m := range holder.FindAllSubmatch(locks, -1) {
		if pid := string(m[1]); pid != strconv.Itoa(os.Getpid()) { // which may share the lock
			return " (process " + pid + ")"
		}
	}
	return ""
}

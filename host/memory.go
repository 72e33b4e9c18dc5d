package host

import (
	"fmt"
	"math"
	"os"
	"regexp"
)

// MemoryDir is where a worker's files live if they fit: a file system in
// memory.
var MemoryDir = "/dev/shm"

// AvailableMemory is how many bytes programs can still take: before the machine
// swaps (proc_meminfo(5), MemAvailable), and by the limit of the container
// (memory.max and memory.current of its cgroup). What can't be told is no bound.
func AvailableMemory() uint64 {
	bytes := uint64(math.MaxInt64)
	var kib, limit, used uint64
	if m := memAvailable.FindSubmatch(contents("/proc/meminfo")); m != nil {
		fmt.Sscan(string(m[1]), &kib)
		bytes = kib << 10
	}
	_, err1 := fmt.Sscan(string(contents("/sys/fs/cgroup/memory.max")), &limit) // "max" is none
	_, err2 := fmt.Sscan(string(contents("/sys/fs/cgroup/memory.current")), &used)
	if err1 == nil && err2 == nil {
		bytes = min(bytes, max(limit, used)-used)
	}
	return bytes
}

func contents(path string) []byte {
	data, _ := os.ReadFile(path) // empty where there is none
	return data
}

var memAvailable = regexp.MustCompile(`(?m)^MemAvailable:\s+(\d+) kB$`)

package seeds

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Shard is the part of a sweep that one process does, Index of Count, counted
// from 1. Shards share the folder of the results, and wait for nothing of each
// other: each has seeds of its own, interleaved with those of the others so that
// all are equally far at any time, and a journal of its own. The zero Shard, like
// 1 of 1, is the whole sweep.
type Shard struct {
	Index uint32 `json:"index"`
	Count uint32 `json:"count"`
}

// ParseShard reads what String writes, "3/8".
func ParseShard(text string) (Shard, error) {
	before, after, _ := strings.Cut(text, "/")
	index, err1 := strconv.ParseUint(before, 10, 32)
	count, err2 := strconv.ParseUint(after, 10, 32)
	if err1 != nil || err2 != nil || index < 1 || index > count {
		return Shard{}, fmt.Errorf("shard %q: want I/N, I from 1 to N, such as 3/8", text)
	}
	return Shard{uint32(index), uint32(count)}, nil
}

// String returns "3/8".
func (s Shard) String() string { return fmt.Sprintf("%d/%d", max(1, s.Index), max(1, s.Count)) }

// Whole tells whether there are no other shards.
func (s Shard) Whole() bool { return s.Count <= 1 }

// First tells whether it is the one that saves what belongs to all.
func (s Shard) First() bool { return s.Index <= 1 }

// Owns tells whether a seed of a range that begins with first is the shard's.
func (s Shard) Owns(seed, first uint32) bool {
	return s.Whole() || seed >= first && (seed-first)%s.Count == s.Index-1
}

// JournalNames are the names of a sweep's journals: a shard has one of its own.
var JournalNames = regexp.MustCompile(`\Asweep(-[0-9]+-of-[0-9]+)?\.journal\z`)

// Journal is the name of the journal.
func (s Shard) Journal() string {
	if s.Whole() {
		return SweepJournal
	}
	return fmt.Sprintf("sweep-%d-of-%d.journal", s.Index, s.Count)
}

// otherwise tells in words of sweeps in a folder that share its seeds in another
// way. Both together are one sweep to all that reads them, but a seed of both is
// tried twice. It is empty where there are none.
func (s Shard) SharedOtherwise(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	own := fmt.Sprintf("sweep-*-of-%d.journal", s.Count)
	if s.Whole() {
		own = s.Journal()
	}
	var names []string
	tried := map[ID]bool{}
	for _, e := range entries {
		name := e.Name()
		if same, err := filepath.Match(own, name); same || err != nil || !JournalNames.MatchString(name) {
			continue
		}
		_, records, _, err := ReadJournal(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		names = append(names, name)
		for _, r := range records {
			tried[r.Layout] = true
		}
	}
	delete(tried, Baseline)
	if names == nil {
		return "", nil
	}
	return fmt.Sprintf("%s shares its seeds in another way with %s: what those have tried (%d layouts) is tried again where it is this one's, and merge counts it once; for shards of one sweep give each the same N in -shard I/N",
		filepath.Join(dir, s.Journal()), strings.Join(names, ", "), len(tried)), nil
}

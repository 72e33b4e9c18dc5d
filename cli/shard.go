package cli

import (
	"errors"
	"fmt"
	"strconv"

	"unlucky/seeds"
)

// findShard says which shard of a sweep this process is, and by what: the
// -shard flag, or else a Slurm array's or a Kubernetes Indexed Job's
// environment. Without any it is the whole sweep. An environment that does not
// say which it is of how many is an error: a shard taken for the whole sweep
// would do the work of all.
func findShard(given string, getenv func(string) string) (s seeds.Shard, by string, err error) {
	if given != "" {
		s, err = seeds.ParseShard(given)
		return s, "-shard", err
	}
	n := envNumber{getenv: getenv}
	shards, told := n.get("UNLUCKY_SHARDS")
	id, slurm := n.get("SLURM_ARRAY_TASK_ID")
	index, kubernetes := n.get("JOB_COMPLETION_INDEX")
	switch {
	case slurm && told:
		by = "SLURM_ARRAY_TASK_ID and UNLUCKY_SHARDS"
		index = id // so that some of the tasks can be run again
	case slurm:
		// The ids of all tasks, 1-8 or 0-7, tell how many there are; those of
		// some of them, as 3 or 1,3,7, do not.
		by = "SLURM_ARRAY_TASK_ID"
		first, _ := n.get("SLURM_ARRAY_TASK_MIN")
		last, _ := n.get("SLURM_ARRAY_TASK_MAX")
		shards, _ = n.get("SLURM_ARRAY_TASK_COUNT")
		if n.err == nil && (shards < 2 || first > 1 || last-first+1 != shards) {
			return s, by, fmt.Errorf("task %d of a Slurm array of %d, from %d to %d: how many shards there are is told only by a whole array, such as --array=1-8; give -shard, such as %d/8, or set UNLUCKY_SHARDS to their number",
				id, shards, first, last, max(1, id))
		}
		index = id - first + 1
	case kubernetes:
		by = "JOB_COMPLETION_INDEX and UNLUCKY_SHARDS"
		if !told {
			return s, by, errors.New("JOB_COMPLETION_INDEX is set, and Kubernetes does not tell of how many: set UNLUCKY_SHARDS to the job's completions, or give -shard")
		}
		index++ // they count from 0
	case told:
		return s, by, errors.New("UNLUCKY_SHARDS is set, and neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX says which this is: give -shard, or unset it")
	default:
		return s, "", n.err
	}
	if n.err != nil {
		return s, by, n.err
	}
	if s, err = seeds.ParseShard(fmt.Sprintf("%d/%d", index, shards)); err != nil {
		err = fmt.Errorf("%s: %w", by, err)
	}
	return s, by, err
}

// envNumber reads numbers in the environment, and keeps the first error.
type envNumber struct {
	getenv func(string) string
	err    error
}

func (e *envNumber) get(name string) (n uint64, ok bool) {
	text := e.getenv(name)
	if text == "" {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil && e.err == nil {
		e.err = fmt.Errorf("%s=%q in the environment is no number", name, text)
	}
	return n, true
}

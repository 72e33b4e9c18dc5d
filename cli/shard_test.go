package cli

import (
	"strings"
	"testing"
)

// Which shard a process is, by -shard, by Slurm and by Kubernetes; and every
// environment that does not tell, for which no process may take the whole sweep.
func TestFindShard(t *testing.T) {
	t.Parallel()
	slurm := func(id, min, max, count string) map[string]string {
		return map[string]string{"SLURM_ARRAY_TASK_ID": id, "SLURM_ARRAY_TASK_MIN": min, "SLURM_ARRAY_TASK_MAX": max, "SLURM_ARRAY_TASK_COUNT": count}
	}
	with := func(env map[string]string, name, value string) map[string]string {
		env[name] = value
		return env
	}
	for _, test := range []struct {
		name, flag string
		env        map[string]string
		want, by   string // or "" and
		err        string
	}{
		{"none", "", nil, "1/1", "", ""},
		{"flag", "3/8", nil, "3/8", "-shard", ""},
		{"flag, whole", "1/1", slurm("3", "1", "8", "8"), "1/1", "-shard", ""},
		{"flag before the environment", "2/3", slurm("3", "1", "8", "8"), "2/3", "-shard", ""},
		{"flag, not I/N", "3", nil, "", "", `shard "3": want I/N, I from 1 to N`},
		{"flag, 0", "0/8", nil, "", "", `shard "0/8": want I/N`},
		{"flag, beyond", "9/8", nil, "", "", `shard "9/8": want I/N`},
		{"flag, of none", "0/0", nil, "", "", `shard "0/0": want I/N`},
		{"flag, signs", "+1/8", nil, "", "", `shard "+1/8": want I/N`},
		{"flag, more", "1/8/9", nil, "", "", `shard "1/8/9": want I/N`},
		{"flag, huge", "1/4294967296", nil, "", "", `want I/N`},

		{"--array=1-8, first", "", slurm("1", "1", "8", "8"), "1/8", "SLURM_ARRAY_TASK_ID", ""},
		{"--array=1-8, last", "", slurm("8", "1", "8", "8"), "8/8", "SLURM_ARRAY_TASK_ID", ""},
		{"--array=0-7, first", "", slurm("0", "0", "7", "8"), "1/8", "SLURM_ARRAY_TASK_ID", ""},
		{"--array=0-7, last", "", slurm("7", "0", "7", "8"), "8/8", "SLURM_ARRAY_TASK_ID", ""},
		{"--array=3", "", slurm("3", "3", "3", "1"), "", "", "task 3 of a Slurm array of 1, from 3 to 3: how many shards there are is told only by a whole array, such as --array=1-8; give -shard, such as 3/8, or set UNLUCKY_SHARDS"},
		{"--array=1", "", slurm("1", "1", "1", "1"), "", "", "a whole array"},
		{"--array=0", "", slurm("0", "0", "0", "1"), "", "", "such as 1/8"},
		{"--array=1,3,7", "", slurm("3", "1", "7", "3"), "", "", "a whole array"},
		{"--array=1-7:2", "", slurm("3", "1", "7", "4"), "", "", "a whole array"},
		{"--array=5-8", "", slurm("5", "5", "8", "4"), "", "", "a whole array"},
		{"a task that is not in its array", "", slurm("9", "1", "8", "8"), "", "", `SLURM_ARRAY_TASK_ID: shard "9/8"`},
		{"no bounds", "", map[string]string{"SLURM_ARRAY_TASK_ID": "3"}, "", "", "a whole array"},
		{"not a number", "", slurm("3", "1", "x", "8"), "", "", `SLURM_ARRAY_TASK_MAX="x" in the environment is no number`},
		{"--array=3 of 8", "", with(slurm("3", "3", "3", "1"), "UNLUCKY_SHARDS", "8"), "3/8", "SLURM_ARRAY_TASK_ID and UNLUCKY_SHARDS", ""},
		{"--array=1-8 of 8", "", with(slurm("8", "1", "8", "8"), "UNLUCKY_SHARDS", "8"), "8/8", "SLURM_ARRAY_TASK_ID and UNLUCKY_SHARDS", ""},
		{"--array=0 of 8", "", with(slurm("0", "0", "7", "8"), "UNLUCKY_SHARDS", "8"), "", "", `shard "0/8": want I/N, I from 1 to N`},
		{"--array=9 of 8", "", with(slurm("9", "9", "9", "1"), "UNLUCKY_SHARDS", "8"), "", "", `shard "9/8"`},

		{"Indexed Job, first", "", map[string]string{"JOB_COMPLETION_INDEX": "0", "UNLUCKY_SHARDS": "8"}, "1/8", "JOB_COMPLETION_INDEX and UNLUCKY_SHARDS", ""},
		{"Indexed Job, last", "", map[string]string{"JOB_COMPLETION_INDEX": "7", "UNLUCKY_SHARDS": "8"}, "8/8", "JOB_COMPLETION_INDEX and UNLUCKY_SHARDS", ""},
		{"Indexed Job, too many", "", map[string]string{"JOB_COMPLETION_INDEX": "8", "UNLUCKY_SHARDS": "8"}, "", "", `shard "9/8"`},
		{"Indexed Job, of how many", "", map[string]string{"JOB_COMPLETION_INDEX": "0"}, "", "", "set UNLUCKY_SHARDS to the job's completions"},
		{"Indexed Job, no number", "", map[string]string{"JOB_COMPLETION_INDEX": "-1", "UNLUCKY_SHARDS": "8"}, "", "", `JOB_COMPLETION_INDEX="-1" in the environment is no number`},
		{"a job that is not indexed", "", map[string]string{"UNLUCKY_SHARDS": "8"}, "", "", "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX says which this is"},
		{"no number of shards", "", map[string]string{"UNLUCKY_SHARDS": "all"}, "", "", "UNLUCKY_SHARDS"},
	} {
		s, by, err := findShard(test.flag, func(name string) string { return test.env[name] })
		switch {
		case test.want == "" && (err == nil || !strings.Contains(err.Error(), test.err)):
			t.Errorf("%s: %s by %q, error %v, want one with %q", test.name, s, by, err, test.err)
		case test.want != "" && (err != nil || s.String() != test.want || by != test.by):
			t.Errorf("%s: %s by %q, error %v, want %s by %q", test.name, s, by, err, test.want, test.by)
		}
	}
}

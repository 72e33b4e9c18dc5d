package cli

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"unlucky/layout"
	"unlucky/qemu"
	"unlucky/seeds"
)

// A journal that came by mail does not make merge copy what is elsewhere.
func TestMergeOutside(t *testing.T) {
	dir := t.TempDir()
	j, err := seeds.OpenJournal(filepath.Join(dir, "in/s/sweep.journal"), seeds.Header{Scenario: "s", Strategy: "lld/1"})
	if err != nil {
		t.Fatal(err)
	}
	r := seeds.Record{Layout: seeds.Baseline, Verdict: seeds.Verdict{Kind: qemu.Crash, Title: "t", Boots: 1, Crashes: 1}, Plan: layout.Plan{}.Digest(), Path: "../../secret.yaml"}
	if err := j.Append(r); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "secret.yaml"), []byte("unlucky: 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	err = run(context.Background(), []string{"merge", filepath.Join(dir, "in"), "-o", filepath.Join(dir, "out")}, nil, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "is outside of") || !strings.Contains(err.Error(), "secret.yaml") {
		t.Errorf("error %v", err)
	}
}

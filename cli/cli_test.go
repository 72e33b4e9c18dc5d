package cli

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain puts unlucky on the PATH of what tests run.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"unlucky": func() { os.Exit(Main()) }})
}

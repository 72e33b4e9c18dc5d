package cli

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
)

func TestUsageNamesEveryCommand(t *testing.T) {
	for name := range commands() {
		if !strings.Contains(usage, "\n    unlucky "+name+" ") {
			t.Errorf("%s is not in the usage", name)
		}
		if err := run(context.Background(), []string{name, "-no-such-flag"}, nil, os.Stderr); !errors.As(err, &usageError{}) {
			t.Errorf("%s -no-such-flag: error %v", name, err)
		}
	}
}

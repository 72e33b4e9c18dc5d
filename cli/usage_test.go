package cli

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
)

func TestUsageNamesEveryCommand(t *testing.T) {
	all := commands()
	for _, c := range all {
		if !strings.Contains(usage(all), "\n    unlucky "+c.Name()+" ") {
			t.Errorf("%s is not in the usage", c.Name())
		}
		if err := run(context.Background(), []string{c.Name(), "-no-such-flag"}, nil, os.Stderr); !errors.As(err, &usageError{}) {
			t.Errorf("%s -no-such-flag: error %v", c.Name(), err)
		}
	}
}

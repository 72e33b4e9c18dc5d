package host

import "fmt"

// HintError is a failure that the user can mend; Hint says how.
type HintError struct {
	Err  error
	Hint string
}

func (e *HintError) Error() string { return e.Err.Error() }
func (e *HintError) Unwrap() error { return e.Err }

// Hint adds to an error what the user can do.
func Hint(err error, format string, a ...any) error {
	return &HintError{err, fmt.Sprintf(format, a...)}
}

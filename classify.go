package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"

	"unlucky/qemu/oops"
)

func classify(_ context.Context, args []string, in io.Reader, out io.Writer) error {
	f := flag.NewFlagSet("classify", flag.ContinueOnError)
	asJSON := f.Bool("json", false, "print title, kind, function and line as JSON")
	warnings := f.Bool("warnings", false, "count the kernel's WARNING reports")
	rest, err := parse(f, args, out, "classify [-json] [-warnings] FILE|-", 1, 1)
	if err != nil {
		return err
	}
	if rest[0] != "-" {
		file, err := os.Open(rest[0])
		if err != nil {
			return err
		}
		defer file.Close()
		in = file
	}
	c := oops.NewClassifier(*warnings)
	if _, err := io.Copy(c, in); err != nil {
		return fmt.Errorf("reading %s: %w", rest[0], err)
	}
	c.Write([]byte("\n")) // the last line may lack its end
	report, crashed := c.Report()
	if !crashed {
		report.Title = "no crash"
	}
	if *asJSON {
		return json.NewEncoder(out).Encode(report)
	}
	_, err = fmt.Fprintln(out, printable(report.Title))
	return err
}

package spec_test

import (
	"fmt"
	"os"

	"github.com/ocurrent/obx/keys/spec"
)

// A program can make a spec as well as read one: every type is plain data, and places are left out.
func Example() {
	build := &spec.Stage{
		From: spec.From{Image: "debian:12"},
		Ops: []spec.Op{
			&spec.Workdir{Dir: "/src"},
			&spec.Copy{Src: []string{"."}, Dst: "./", Exclude: []string{".git"}},
			&spec.Run{
				Command: "make -j",
				Caches:  []spec.Mount{{ID: "ccache", Target: "/root/.ccache"}},
			},
		},
	}
	s := &spec.Spec{Stage: spec.Stage{
		Builds: []spec.Build{{Name: "dev", Stage: build}},
		From:   spec.From{Image: "busybox"},
		Ops: []spec.Op{
			&spec.Copy{From: "dev", Src: []string{"/src/hello"}, Dst: "/bin/hello"},
		},
	}}
	if err := s.Check("linux"); err != nil {
		fmt.Println(err)
		return
	}
	os.Stdout.Write(s.Format())
	// Output:
	// ((build dev
	//   ((from debian:12)
	//    (workdir /src)
	//    (copy (src .) (dst ./) (exclude .git))
	//    (run (cache (ccache (target /root/.ccache))) (shell "make -j"))))
	//  (from busybox)
	//  (copy (from (build dev)) (src /src/hello) (dst /bin/hello)))
}

func ExampleParse() {
	s, err := spec.Parse("app.spec", []byte(`((from busybox)
 (rnu (shell "make"))
 (copy (src a b)))`))
	fmt.Println(s)
	fmt.Println(err)
	// Output:
	// <nil>
	// app.spec:2:3: unknown operation rnu: did you mean run?
	// app.spec:3:2: copy without (dst PATH)
}

func ExampleSpec_Check() {
	s, err := spec.Parse("app.spec", []byte(`((build dev ((from debian)))
 (from busybox)
 (copy (from (build devs)) (src hello world) (dst /bin)))`))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(s.Check("linux"))
	// Output:
	// app.spec:3:14: unknown build devs: did you mean dev?
	// app.spec:3:51: several sources need a destination that ends with /: did you mean /bin/?
}

func ExampleHeadingIn() {
	fmt.Println(spec.HeadingIn("/src", &spec.Run{Command: "make", Network: []string{"host"}}))
	// Output:
	// /src: (run (network host)
	//            (shell make))
}

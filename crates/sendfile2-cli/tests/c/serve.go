// serve FILE: serves the file by net/http, at each request; overwrites it with the letter B when it is
// sent, and says so.
package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	file, err := os.OpenFile(os.Args[1], os.O_RDWR, 0)
	check(err)
	stat, err := file.Stat()
	check(err)
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	check(err)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	check(http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, file)
		_, err := file.WriteAt(bytes.Repeat([]byte("B"), int(stat.Size())), 0)
		check(err)
		fmt.Println("overwritten")
	})))
}

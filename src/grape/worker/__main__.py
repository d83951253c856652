from grape.worker.main import main

main()

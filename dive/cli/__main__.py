from dive.cli import main

main()
